"""What a user asks of the field codec: a network fitted to each chunk, of the size that the ratio leaves.

Words in, an `INRSpec` out; see `base` for what all codecs share. The work lies in encoding: `effort` and `time_limit`
say how much of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from zarr_emcodec.codecs.base import Spec, number, put
from zarr_emcodec.codecs.vae import VAESpec
from zarr_emcodec.errors import SpecError
from zarr_emcodec.fitting import DEFAULT_EFFORT, LAYERS, STEPS
from zarr_emcodec.runtime import Card, find_model
from zarr_emcodec.runtime.inr_card import BACKBONES

DEFAULT_RATIO = 64.0
BITS = (4, 5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class INRSpec(Spec):
    """Configuration of `INRCodec`.

    Parameters
    ----------
    ratio : float, optional
        Raw bytes over stored bytes of each chunk, 2 or more: never below, at most about 5 % above. 64 when not given.
    backbone : {"siren", "latents"}
        What is fitted. "siren": layers of sines (Sitzmann et al. 2020) with one learnable frequency. "latents":
        whole numbers on a coarse grid, fitted to a small network that all chunks share (as Cool-chic, Ladune et al.
        2023, but for that): of EM the better picture at the same bytes, by far, and faster; nothing between voxels.
    bits : int
        4 to 8: bits of a weight that the network's width is chosen for. Fewer bits make a wider network of coarser
        weights.
    layers : int, optional
        3 to 7, the linear last one included; by the budget when not given. 7 is what INIF uses (Dai et al. 2024).
    effort : int
        0 to 9: steps of the fit. Of sines 30, 100, 200, 400, 800, 1500, 3000, 6000, 12000, 25000; of latents rounds, 0,
        4, 8, 12, 16, 24, 32, 48, 64, 96, and without any no torch is needed.
    seed : int
        Of the fit's random numbers: with equal seeds, threads and libraries a chunk gives the same bytes; on a GPU, in
        the same batch.
    prior : str, optional
        "vae", or a variational model's name: the chunk is first coded by that model, and the field corrects what it
        gives. Such chunks are decoded whole; between voxels they answer with the nearest. At equal bytes the model
        alone was better on EM at every share (``benchmarks/inr_hybrid.py``).
    prior_share : float
        Of the bytes that the prior has, between 0 and 1.
    time_limit : float, optional
        Seconds of fitting for each chunk, whatever the effort. What is stored then depends on the machine's speed.
    min_psnr, max_error : float, optional
        As in `zarr_emcodec.codecs.base.Spec`. A chunk that falls short is stored losslessly: another fit, of a larger
        network, would take as long again, and no more certain.
    mode : {"entropy"}
        Weights have no fixed width.
    model : str
        "auto" (the newest of the backbone), a name, "name@version", or "sha256:<hex>". Of sines it holds no more
        than what fits start from.
    prior_digest : str
        "sha256:<hex>" of the prior; filled in, given only in stored metadata.
    window, background, digest
        As in `zarr_emcodec.codecs.base.Spec`.

    Raises
    ------
    SpecError
        If a value is out of range; the message names what there is.
    ModelNotFoundError
        If `model` is not on the search path.

    Notes
    -----
    Encoding needs torch, decoding does not. A chunk whose budget holds no network is refused when it is encoded, with
    the size of the smallest chunk that this ratio works for: chunks should have a million voxels or more. Latents
    refuse no chunk; one that misses a promised quality goes to finer levels before it is stored losslessly.
    """

    CODEC: ClassVar[str] = "inr"
    OVERHEAD_SHARE: ClassVar[float] = 0.5  # any budget finds its network

    backbone: str = "siren"
    bits: int = 6
    layers: int | None = None
    effort: int = DEFAULT_EFFORT
    seed: int = 0
    time_limit: float | None = None
    prior: str | None = None
    prior_share: float = 0.5
    prior_digest: str = ""

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the model, and of the prior where there is one."""
        return (self.digest, self.prior_digest) if self.prior_digest else (self.digest,)

    def _default_ratio(self) -> float | None:
        return DEFAULT_RATIO

    def _check_own(self) -> None:
        if self.mode != "entropy":
            raise SpecError(
                f"mode {self.mode!r}: codec 'inr' stores weights of no fixed width. Use mode='entropy'.",
                name="mode",
                value=self.mode,
            )
        if self.backbone not in BACKBONES:
            there = " or ".join(map(repr, BACKBONES))
            raise SpecError(f"backbone {self.backbone!r}: there is {there}.", name="backbone", value=self.backbone)
        if self.backbone == "latents" and (self.layers is not None or self.prior is not None):
            name = "layers" if self.layers is not None else "prior"
            raise SpecError(f"{name}: backbone 'latents' has none. Leave it out.", name=name, value=getattr(self, name))
        self._check_integer("bits", BITS[0], BITS[-1])
        if self.layers is not None:
            self._check_integer("layers", *LAYERS)
        self._check_integer("effort", 0, len(STEPS) - 1)
        self._check_integer("seed", 0, 2**63 - 1)
        put(self, "time_limit", number("time_limit", self.time_limit))
        if self.time_limit is not None and self.time_limit <= 0:
            raise SpecError(
                f"time_limit {self.time_limit:g}: needs a number above 0, seconds.",
                name="time_limit",
                value=self.time_limit,
            )
        self._check_prior()

    def _check_prior(self) -> None:
        share = number("prior_share", self.prior_share)
        if share is None or not 0 < share < 1:
            raise SpecError(
                f"prior_share {self.prior_share!r}: needs a number between 0 and 1; a prior of all bytes is VAECodec.",
                name="prior_share",
                value=self.prior_share,
            )
        put(self, "prior_share", share)
        if self.prior is None or self.prior_digest:
            return
        assert self.ratio is not None
        try:
            prior = VAESpec(ratio=self.ratio / share, model="auto" if self.prior == "vae" else self.prior)
        except SpecError as error:
            raise SpecError(f"prior: at {share:g} of the bytes {error}", name="prior", value=self.prior) from error
        put(self, "prior", prior.model)
        put(self, "prior_digest", prior.digest)

    def _check_integer(self, name: str, low: int, high: int) -> None:
        value: Any = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise SpecError(f"{name} {value!r}: needs an integer from {low} to {high}.", name=name, value=value)

    def _choose(self) -> Card:
        assert self.ratio is not None
        if self.model == "auto":
            cards = [card for card in self.cards() if card.inr and card.inr.backbone == self.backbone]
            # without any the search fails, and names the folders it looked into
            card = max(cards, key=lambda card: card.version) if cards else find_model(f"inr-{self.backbone}").card
        else:
            card = find_model(self.model).card
        self.check_kind(card)
        assert card.inr is not None
        if card.inr.backbone != self.backbone:
            raise SpecError(
                f"model '{card.id}' is of backbone '{card.inr.backbone}', not '{self.backbone}'. Pass "
                f"backbone='{card.inr.backbone}'.",
                name="model",
                value=card.id,
            )
        low, high = card.ratio_range
        if not low <= self.ratio <= high:
            raise SpecError(
                f"ratio {self.ratio:g}: model '{card.id}' covers {low:g} to {high:g}.", name="ratio", value=self.ratio
            )
        return card
