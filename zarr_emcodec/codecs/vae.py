"""What a user asks of the variational codec: one network for a range of ratios, or for a quality.

Words in, a `VAESpec` out; see `base` for what all codecs share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zarr_emcodec.codecs.base import Mode as Mode
from zarr_emcodec.codecs.base import Spec
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
        "auto" (the model whose range holds the ratio), a name, "name@version", or "sha256:<hex>".
    mode, min_psnr, max_error, window, background, digest
        As in `zarr_emcodec.codecs.base.Spec`.

    Raises
    ------
    SpecError
        If a value is out of range or the model lacks the ratio; the message names what would do.
    ModelNotFoundError
        If `model` is not on the search path.
    """

    CODEC: ClassVar[str] = "vae"
    OVERHEAD_SHARE: ClassVar[float] = 0.5  # levels go on: what metadata take, coarser latents give back

    def _default_ratio(self) -> float | None:
        return None if self.guarded else DEFAULT_RATIO

    def _choose(self) -> Card:
        if self.model != "auto":
            card = find_model(self.model).card
            self.check_kind(card)
            if self.ratio is not None and not card.ratio_range[0] <= self.ratio <= card.ratio_range[1]:
                low, high = card.ratio_range
                raise SpecError(
                    f"model '{card.id}' covers ratios {low:g} to {high:g}, not {self.ratio:g}. {self._others()}",
                    name="ratio",
                    value=self.ratio,
                )
            return card
        cards = self.cards()
        if not cards:
            return find_model("vae").card  # raises, naming the folders that were searched
        if self.ratio is None:  # a quality was asked for: the model with the finest settings can go lowest
            return min(cards, key=lambda card: card.ratio_range[0])
        fitting = [card for card in cards if card.ratio_range[0] <= self.ratio <= card.ratio_range[1]]
        if not fitting:
            raise SpecError(f"no model covers ratio {self.ratio:g}. {self._others()}", name="ratio", value=self.ratio)
        # where ranges overlap, the one that is made for higher ratios: its range begins where it is ahead
        return max(fitting, key=lambda card: (card.ratio_range[0], card.version))

    def _others(self) -> str:
        ranges = [f"'{c.id}' ({c.ratio_range[0]:g} to {c.ratio_range[1]:g})" for c in self.cards()]
        return f"Installed: {', '.join(ranges)}." if ranges else "No other model is installed."
