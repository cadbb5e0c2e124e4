"""A latent or masked frame that has been looked into: its model, its background, and what is wanted of it."""

from __future__ import annotations

from dataclasses import dataclass

from zarr_emcodec import transform
from zarr_emcodec._types import Buffer, Shape
from zarr_emcodec.codecs import mask
from zarr_emcodec.errors import FrameError, SpecError, UnsupportedFrameError
from zarr_emcodec.frame import Frame, Kind, Tier
from zarr_emcodec.runtime import Model, Options, find_model

Planes = tuple[int, int] | None
"""A range of planes of a chunk's first axis; None for all of it."""


@dataclass(eq=False)
class Opened:
    """One frame on its way to voxels.

    Attributes
    ----------
    frame : Frame
        As it was unpacked.
    model : Model
        That its header names.
    background : Background or None
        Of a masked frame.
    sections : tuple of buffer
        Side information and streams, without the mask.
    shape : tuple of int
        Of the box that the latents stand for.
    planes : (start, stop)
        Those planes of the box's first axis that are decoded.
    """

    frame: Frame
    model: Model
    background: mask.Background | None
    sections: tuple[Buffer, ...]
    shape: Shape
    planes: tuple[int, int]

    @property
    def out_shape(self) -> Shape:
        """Shape of the voxels that decoding gives, before the background is restored."""
        return (self.planes[1] - self.planes[0], *self.shape[1:])

    def check_only_full(self, options: Options) -> None:
        """Refuse another tier than "full", for models that have no other.

        Raises
        ------
        UnsupportedFrameError
            If the frame is at another.
        SpecError
            If the options ask for another.
        """
        frame, card = self.frame, self.model.card
        if frame.tier is not Tier.FULL:
            raise UnsupportedFrameError(
                f"frame is at tier '{frame.tier.name.lower()}', its model '{card.id}' has only 'full'. "
                "Upgrade zarr_emcodec.",
                field="tier",
            )
        if options.tier not in (None, "full"):
            raise SpecError(
                f"model '{card.id}' has one tier, 'full', not '{options.tier}'. Leave options(tier=...) unset.",
                name="tier",
                value=options.tier,
            )


def open_frame(frame: Frame, planes: Planes, options: Options) -> Opened:
    """Find a frame's model and its mask, and hold its claims against the limits.

    Raises
    ------
    FrameError
        If it has too few axes, a mask that lies, or stands for more than the limit once padded.
    ModelNotFoundError
        If its model is not on the search path.
    """
    if len(frame.shape) < 2:
        raise FrameError(f"latent frame of shape {frame.shape}: latents need two axes or more.", field="shape")
    assert frame.model is not None  # the frame's reader has checked it
    model = find_model(frame.model)
    sections, background = frame.sections, None
    if frame.kind is Kind.MASKED:
        background = mask.unpack_mask(sections[0], frame.shape, frame.dtype.newbyteorder("="))
        sections = sections[1:]
    shape = frame.shape if background is None else background.shape
    _check_padded(frame, model, shape, options)
    wanted = (0, shape[0])
    if planes is not None and background is None and len(shape) >= 3:
        wanted = planes
    return Opened(frame, model, background, sections, shape, wanted)


def _check_padded(frame: Frame, model: Model, shape: Shape, options: Options) -> None:
    """Thin sections are padded to whole cells: a few bytes could ask for hundreds of times the chunk's size."""
    cell = model.card.cell
    if transform.padded_voxels(shape, cell) > options.max_chunk_bytes:
        extent = transform.section_shape(shape, len(cell))
        n, grid = transform.n_sections(shape, len(cell)), transform.cells(extent, cell)
        raise FrameError(
            f"latent frame of shape {frame.shape} stands for {n} x {grid} cells of {cell} voxels, above the limit "
            f"of {options.max_chunk_bytes}. If the data are trusted, raise options(max_chunk_bytes=...).",
            field="shape",
        )
