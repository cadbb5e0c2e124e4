"""Which tiers there are: of a model, and of one stored frame.

Names and frames in, tiers or a `SpecError` that lists them out. No voxel is decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_emcodec.errors import SpecError
from zarr_emcodec.frame import Kind, Tier
from zarr_emcodec.runtime import find_model

if TYPE_CHECKING:
    from zarr_emcodec.frame import Header
    from zarr_emcodec.jobs.frames import Layout
    from zarr_emcodec.runtime.options import TierName

RICHNESS = {Tier.TOP: 0, Tier.PRIOR: 1, Tier.FULL: 2}
"""Order of the tiers, the cheapest first."""


def parse_tier(name: str) -> Tier:
    """A tier by its name.

    Raises
    ------
    SpecError
        If there is none of that name.

    Examples
    --------
    >>> parse_tier("prior")
    <Tier.PRIOR: 2>
    """
    try:
        return Tier[name.upper()]
    except (KeyError, AttributeError):
        raise SpecError(f"tier {name!r}: needs 'top', 'prior' or 'full'.", name="tier", value=name) from None


def tiers_of(model: str | bytes) -> tuple[TierName, ...]:
    """Names of the tiers that a model decodes at, the cheapest first.

    Parameters
    ----------
    model : str or bytes
        Reference or digest.

    Raises
    ------
    ModelNotFoundError
        If it is not on the search path.
    """
    there = getattr(find_model(model).card, "tiers", ("full",))
    return tuple(sorted(there, key=lambda name: RICHNESS[parse_tier(name)]))


def check_tier(model: str | bytes, tier: Tier) -> None:
    """Refuse a tier that a model lacks.

    Raises
    ------
    SpecError
        It lists the tiers that there are.
    """
    there = tiers_of(model)
    name = tier.name.lower()
    if name not in there:
        raise SpecError(
            f"model '{find_model(model).card.id}' has {_words(there)}, not '{name}'.", name="tier", value=name
        )


def check_frame(header: Header, tier: Tier) -> None:
    """Refuse a tier that a frame cannot decode at: its model lacks it, or the tokens for it were never stored.

    Raises
    ------
    SpecError
        It lists the tiers that there are.
    """
    assert header.model is not None  # the header's reader has checked it
    check_tier(header.model, tier)
    if find_model(header.model).card.codec == "vqvae":
        from zarr_emcodec.codecs.vqvae_decode import leading_sections

        leading_sections(header, tier.name.lower())


def _words(tiers: tuple[TierName, ...]) -> str:
    listed = " and ".join(f"'{tier}'" for tier in tiers)
    return f"tier {listed}" if len(tiers) == 1 else f"tiers {listed}"


def check_layout(layout: Layout, where: object) -> None:
    """Refuse arrays whose stored chunks are not frames.

    Raises
    ------
    SpecError
        If another codec wrote them, or another codec stands behind ours.
    """
    if not layout.is_ours:
        raise SpecError(
            f"{where}: its chunks are written by '{layout.codec}', which has no tiers. An array of this package is "
            "needed.",
            name="array",
            value=layout.codec,
        )
    if not layout.has_frames:
        raise SpecError(
            f"{where}: its frames are wrapped by {', '.join(layout.wrapped_by)}. Write it with compressors=None.",
            name="array",
            value=layout.wrapped_by,
        )


def has_tier(header: Header) -> bool:
    """Whether a frame decodes differently at different tiers; constant and lossless frames do not."""
    return header.kind in (Kind.LATENT, Kind.MASKED)
