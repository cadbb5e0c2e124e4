"""What a user asks of the variational codec: one network for a range of ratios, or for a quality.

Words in, a `VAESpec` out; see `base` for what all codecs share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zarr_emcodec.codecs.base import Mode as Mode
from zarr_emcodec.codecs.base import Spec, axes_to_code, check_effort, put, voxel_size
from zarr_emcodec.errors import SpecError
from zarr_emcodec.runtime import Card, find_model

DEFAULT_RATIO = 32.0


@dataclass(frozen=True, kw_only=True)
class VAESpec(Spec):
    """Configuration of `VAECodec`.

    Parameters
    ----------
    ratio : float, optional
        Raw bytes over stored bytes of each chunk: never below, at most about 10 % above. 32 unless a guard is given.
    model : str
        "auto" (of the models whose range holds the ratio the one that keeps most: of sections one by one, or, where
        `voxel_nm` is near isotropic, of volumes or of sections that refer to one another; none that is made for
        speed), a name such as "vae-2d-s16", "name@version", or "sha256:<hex>".
    effort : int
        0 to 9: how long latents are refined through the decoder, chunk by chunk. Needs torch; encoding takes minutes a
        megavoxel at 9, decoding does not change. For models with a learned entropy model; others ignore it.
    voxel_nm : (float, float, float), optional
        Voxel size (z, y, x), for ``model="auto"``.
    mode, min_psnr, max_error, window, background, digest
        As in `zarr_emcodec.codecs.base.Spec`. Mode "nominal" needs a model without a learned entropy model.

    Raises
    ------
    SpecError
        If a value is out of range or the model lacks the ratio; the message names what would do.
    ModelNotFoundError
        If `model` is not on the search path.
    """

    CODEC: ClassVar[str] = "vae"
    OVERHEAD_SHARE: ClassVar[float] = 0.5  # levels go on: what metadata take, coarser latents give back

    effort: int = 0
    voxel_nm: tuple[float, float, float] | None = None

    def _check_own(self) -> None:
        check_effort(self.effort)
        put(self, "voxel_nm", voxel_size(self.voxel_nm))

    def _default_ratio(self) -> float | None:
        return None if self.guarded else DEFAULT_RATIO

    def _choose(self) -> Card:
        if self.model != "auto":
            card = find_model(self.model).card
            self.check_kind(card)
            if self.mode == "nominal" and card.context is not None:
                raise SpecError(
                    f"model '{card.id}' predicts how wide each symbol is, so mode 'nominal' has no fixed width for "
                    "them. Use mode='entropy', or model='auto'.",
                    name="mode",
                    value=self.mode,
                )
            if self.ratio is not None and not card.ratio_range[0] <= self.ratio <= card.ratio_range[1]:
                low, high = card.ratio_range
                raise SpecError(
                    f"model '{card.id}' covers ratios {low:g} to {high:g}, not {self.ratio:g}. {self._others()}",
                    name="ratio",
                    value=self.ratio,
                )
            return card
        cards = [card for card in self.cards() if card.auto]
        if not cards:
            return find_model("vae").card  # raises, naming the folders that were searched
        if self.mode == "nominal":
            cards = [card for card in cards if card.context is None]
        cards = [c for c in cards if self.ratio is None or c.ratio_range[0] <= self.ratio <= c.ratio_range[1]]
        if not cards:
            raise SpecError(f"no model covers ratio {self.ratio:g}. {self._others()}", name="ratio", value=self.ratio)
        isotropic = axes_to_code(self.voxel_nm) == 3
        # unlike sections say little of each other, and any one of them would be read with its references
        alone = [c for c in cards if c.ndim == 2 and not (c.context and c.context.reaches)]
        fitting = [c for c in (cards if isotropic else alone) if self._is_offered(c)] or alone or cards
        if isotropic:
            fitting = [c for c in fitting if c.ndim == 3] or fitting
        return max(fitting, key=self._rank)

    def _is_offered(self, card: Card) -> bool:
        return self.ratio is None or (card.auto is not None and card.auto[0] <= self.ratio <= card.auto[1])

    def _rank(self, card: Card) -> tuple[bool, float, float, int]:
        """What is better: a learned entropy model, then what the ratio asks for, then the larger network."""
        # for a quality, the model with the finest settings; where ranges overlap, the one made for higher ratios
        finest = -card.ratio_range[0] if self.ratio is None else card.ratio_range[0]
        cost = card.mac_per_voxel.get("decode")
        return card.context is not None, finest, float(cost) if isinstance(cost, int | float) else 0.0, card.version

    def _others(self) -> str:
        ranges = [f"'{c.id}' ({c.ratio_range[0]:g} to {c.ratio_range[1]:g})" for c in self.cards()]
        return f"Installed: {', '.join(ranges)}." if ranges else "No other model is installed."
