"""What a user asks of the token codec: a ratio that one of its models stands for, and how stored frames are read.

Words in, a `VQVAESpec` out; see `base` for what all codecs share. Tokens have a fixed rate, so ratios are those that
installed models offer: one for each model of one level, any between two for a model of two levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from zarr_emcodec.codecs.base import Spec, axes_to_code, check_effort, number, put, voxel_size
from zarr_emcodec.errors import SpecError
from zarr_emcodec.runtime import Card, find_model
from zarr_emcodec.runtime.options import TierName
from zarr_emcodec.runtime.token_card import TokenCard

DEFAULT_RATIO = 1024.0


@dataclass(frozen=True, kw_only=True)
class VQVAESpec(Spec):
    """Configuration of `VQVAECodec`.

    Parameters
    ----------
    ratio : float, optional
        Raw bytes over stored bytes of each chunk at 8 bits a voxel, twice that at 16: that of tokens in fixed fields,
        which entropy coding exceeds. When not given that of the named model, or 1024, or the highest installed.
    model : str
        "auto" (the model that offers the ratio; for sections unless `voxel_nm` is near isotropic), a name,
        "name@version", or "sha256:<hex>".
    mode : {"entropy", "nominal"}
        Tokens coded with their context and never larger than their fixed fields, or fixed fields: the exact ratio.
    min_psnr, max_error : float, optional
        As in `zarr_emcodec.codecs.base.Spec`; a chunk that misses stores its bottom tokens as well, or else all
        losslessly.
    tier : {"top", "prior", "full"}, optional
        How frames decode unless a reader asks otherwise. When not given: "full" where bottom tokens are stored, else
        "top". Models of one level have only "full".
    keep : float, optional
        Share of blocks of 16 x 16 bottom tokens that are stored, those where the top alone misses most; from the ratio
        when not given, and the ratio follows from it.
    price : float, optional
        Squared standard deviations of the tissue that a bit is worth when tokens are chosen: 0 takes the nearest code.
        The model's own when not given.
    effort : int
        0 to 9: how many other tokens are tried by decoding, in place of each. Encoding takes so much longer, decoding
        does not.
    voxel_nm : (float, float, float), optional
        Voxel size (z, y, x), for ``model="auto"``.
    window, background, digest
        As in `zarr_emcodec.codecs.base.Spec`.

    Raises
    ------
    SpecError
        If a value is out of range, or no model offers the ratio or the tier; the message names what there is.
    ModelNotFoundError
        If `model` is not on the search path.
    """

    CODEC: ClassVar[str] = "vqvae"
    OVERHEAD_SHARE: ClassVar[float] = 0.05  # tokens have their size: squeezing out more would cost too much quality

    tier: TierName | None = None
    keep: float | None = None
    price: float | None = None
    effort: int = 0
    voxel_nm: tuple[float, float, float] | None = None

    def _default_ratio(self) -> float | None:
        return None  # the model's own, once it is chosen

    def _check_own(self) -> None:
        if self.tier not in (None, *get_args(TierName)):
            raise SpecError(f"tier {self.tier!r}: needs 'top', 'prior' or 'full'.", name="tier", value=self.tier)
        for name in ("keep", "price"):
            put(self, name, number(name, getattr(self, name)))
        if self.keep is not None and not 0 <= self.keep <= 1:
            raise SpecError(f"keep {self.keep:g}: needs a number from 0 to 1.", name="keep", value=self.keep)
        if self.price is not None and self.price < 0:
            raise SpecError(f"price {self.price:g}: cannot be negative.", name="price", value=self.price)
        check_effort(self.effort)
        put(self, "voxel_nm", voxel_size(self.voxel_nm))

    def _choose(self) -> Card:
        card = self._find()
        tokens = card.tokens
        assert tokens is not None
        ratio = tokens.ratio(0.0) if self.ratio is None else self.ratio
        kept = tokens.kept(ratio)
        if kept is None:
            raise SpecError(
                f"model '{card.id}' stores ratio {_offer(tokens)}, not {ratio:g}. {self._others()}",
                name="ratio",
                value=self.ratio,
            )
        if self.keep is not None:
            if tokens.refine is None:
                raise SpecError(
                    f"model '{card.id}' has one level of tokens, so nothing can be kept of another. Drop keep=.",
                    name="keep",
                    value=self.keep,
                )
            kept, ratio = self.keep, tokens.ratio(self.keep)
        put(self, "ratio", ratio)
        put(self, "keep", kept)
        self._check_tier(card, tokens, kept)
        return card

    def _find(self) -> Card:
        if self.model != "auto":
            card = find_model(self.model).card
            self.check_kind(card)
            return card
        cards = self.cards()
        if not cards:
            return find_model("vqvae").card  # raises, naming the folders that were searched
        if self.keep is not None:
            cards = [card for card in cards if card.tokens and card.tokens.refine]
        ratio = _default_ratio(cards) if self.ratio is None else self.ratio
        fitting = [card for card in cards if card.tokens and card.tokens.kept(ratio) is not None]
        if not fitting:
            raise SpecError(f"no token model stores ratio {ratio:g}. {self._others()}", name="ratio", value=self.ratio)
        ndim = axes_to_code(self.voxel_nm)

        def rank(card: Card) -> tuple[bool, bool, int, int]:
            assert card.tokens is not None
            whole = card.tokens.kept(ratio) in (0.0, 1.0)  # made for this ratio, not for others around it
            return card.ndim == ndim, whole, len(card.tiers), card.version

        chosen = max(fitting, key=rank)
        put(self, "ratio", ratio)
        return chosen

    def _check_tier(self, card: Card, tokens: TokenCard, kept: float) -> None:
        if self.tier is None:
            return
        there = [tier for tier in tokens.tiers if tier != "full" or kept or tokens.refine is None]
        if self.tier not in there:
            why = " (its bottom tokens are not stored)" if self.tier in tokens.tiers else ""
            raise SpecError(
                f"model '{card.id}' has tiers {' and '.join(map(repr, there))}, not '{self.tier}'{why}. "
                f"Pass tier={there[-1]!r}.",
                name="tier",
                value=self.tier,
            )

    def _others(self) -> str:
        offers = [f"'{card.id}' ({card.ndim}-D: {_offer(card.tokens)})" for card in self.cards() if card.tokens]
        return f"Installed: {', '.join(offers)}." if offers else "No other model is installed."


def _default_ratio(cards: list[Card]) -> float:
    """1024 where that is offered, else the highest that is."""
    tokens = [card.tokens for card in cards if card.tokens]
    offered = any(t.kept(DEFAULT_RATIO) is not None for t in tokens)
    return DEFAULT_RATIO if offered else max((t.ratio(0.0) for t in tokens), default=DEFAULT_RATIO)


def _offer(tokens: TokenCard) -> str:
    most, least = tokens.ratio(0.0), tokens.ratio(1.0)
    return f"{most:g}" if most == least else f"{most:g}, {least:g} and between"
