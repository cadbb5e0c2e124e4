"""The token codec's part of decoding: sections to tokens at a tier to images to voxels.

    sections -> top tokens (-> bottom tokens: stored, or made up) -> image -> grey levels -> voxels

What the tier does not need is neither read nor decoded. Made-up tokens depend on the frame alone: one frame, one chunk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec import transform
from zarr_emcodec._types import Chunk, Shape
from zarr_emcodec.codecs.opened import Opened
from zarr_emcodec.codecs.token_coding import StoredLevel, draw_keys, make_up, read_levels
from zarr_emcodec.codecs.token_frames import Mask, Setting, Storage, n_blocks, stored_tokens, unpack_side
from zarr_emcodec.codecs.tokens import Contrast, Image, TokenModel, Tokens, token_model_of
from zarr_emcodec.errors import FrameError, SpecError, UnsupportedFrameError
from zarr_emcodec.frame import Header, Tier
from zarr_emcodec.runtime import Card, Options, find_model

T = TypeVar("T")


@dataclass(eq=False)
class _Item:
    """A frame on its way to voxels.

    Attributes
    ----------
    pieces : slice
        Sections or volumes that are wanted.
    window : slice
        Cells along the first axis of a volume that are wanted, with what the decoder sees around them.
    planes : slice
        The planes wanted, counted from the window's first.
    stored : ndarray of bool or None
        Which bottom tokens are stored; None where the tier needs none, or there is none.
    """

    opened: Opened
    model: TokenModel
    tier: Tier
    setting: Setting
    contrast: Contrast
    stored: Mask | None
    shape: Shape
    pieces: slice
    window: slice
    planes: slice
    top: Tokens = field(init=False)
    bottom: Tokens | None = field(init=False, default=None)
    voxels: Chunk = field(init=False)

    @property
    def uses_bottom(self) -> bool:
        """Whether the image takes bottom tokens, stored or made up."""
        return self.tier is Tier.PRIOR or (self.tier is Tier.FULL and self.stored is not None)


def decode(opened: Sequence[Opened], options: Options) -> list[Chunk]:
    """Voxels of frames, with shared entropy decoding and inference where model and grid agree."""
    items = [_open(item, options) for item in opened]
    for group in _groups(items, lambda item: (item.model.model, item.shape[1:])):
        _read(group, options)
    for group in _groups(items, lambda item: (item.model.model, item.uses_bottom, item.top.shape[1:])):
        _synthesise(group, options)
    return [item.voxels.reshape(item.opened.out_shape) for item in items]


def tier_of(card: Card, stated: Tier, storage: Storage, asked: str | None) -> Tier:
    """The tier to decode at: the reader's, or else the frame's.

    Parameters
    ----------
    card : Card
        Of the frame's model.
    stated : Tier
        In the frame's header.
    storage : Storage
        What the frame holds.
    asked : str or None
        ``options(tier=...)``.

    Raises
    ------
    SpecError
        If the reader asks for a tier that the model lacks, or for bottom tokens of a frame that was never to have any.
    UnsupportedFrameError
        If the frame states a tier that the model lacks.
    """
    there = card.tiers
    listed = " and ".join(map(repr, there))
    if asked is not None:
        if asked not in there:
            many = f"one tier, {listed}" if len(there) == 1 else f"tiers {listed}"
            raise SpecError(f"model '{card.id}' has {many}, not '{asked}'.", name="tier", value=asked)
        if asked == "full" and storage is Storage.TOP_ONLY and len(there) > 1:
            others = [tier for tier in there if tier != "full"]
            raise SpecError(
                f"model '{card.id}' decodes this frame at {' and '.join(map(repr, others))}, not 'full' (its bottom "
                f"tokens are not stored). Pass tier={others[-1]!r}.",
                name="tier",
                value=asked,
            )
        return Tier[asked.upper()]
    if stated.name.lower() not in there:
        raise UnsupportedFrameError(
            f"frame is at tier '{stated.name.lower()}', its model '{card.id}' has {listed}.", field="tier"
        )
    return stated


def leading_sections(header: Header, asked: str | None) -> int:
    """How many of a frame's first sections decoding needs, at a tier asked for or at its own.

    Raises
    ------
    SpecError, UnsupportedFrameError
        As `tier_of`.
    FrameError
        If the frame's setting is none of its model's.
    """
    assert header.model is not None
    card = find_model(header.model).card
    assert card.tokens is not None
    setting = Setting.from_byte(header.setting, two_levels=card.tokens.refine is not None)
    tier = tier_of(card, header.tier, setting.storage, asked)
    return header.n_sections - (tier is Tier.TOP and setting.has_bottom)


def _open(opened: Opened, options: Options) -> _Item:
    model = token_model_of(opened.model)
    card = model.card
    ndim = len(card.stride)
    setting = Setting.from_byte(opened.frame.setting, two_levels=card.refine is not None)
    tier = tier_of(opened.model.card, opened.frame.tier, setting.storage, options.tier)
    cells = transform.cells(transform.section_shape(opened.shape, ndim), card.cell)
    n = transform.n_sections(opened.shape, ndim)
    grid = tuple(c * p for c, p in zip(cells, card.lattice, strict=True))
    found, expected = len(opened.sections), 2 + setting.has_bottom
    if found != expected and not (found == 2 and tier is Tier.TOP):
        raise FrameError(f"frame holds {found} sections, its setting means {expected}.", field="table")
    fine: Shape = ()
    if card.refine is not None:
        fine = tuple(c * p for c, p in zip(cells, card.tokens_per_cell("bottom"), strict=True))
    contrast, blocks = unpack_side(opened.sections[0], setting.storage, (n, *n_blocks(fine)))
    stored = None
    if setting.has_bottom and tier is not Tier.TOP:
        stored = np.ones((n, *fine), bool) if blocks is None else stored_tokens(blocks, fine)
    windows = _wanted(opened, model, n, cells)
    return _Item(opened, model, tier, setting, contrast, stored, (n, *grid), *windows)


def _wanted(opened: Opened, model: TokenModel, n: int, cells: Shape) -> tuple[slice, slice, slice]:
    """Pieces, window of cells and planes within it that hold the planes asked for."""
    start, stop = opened.planes
    everything = slice(0, n), slice(0, cells[0]), slice(None)
    if len(opened.shape) > len(cells):
        per_plane = n // opened.shape[0]
        return slice(start * per_plane, stop * per_plane), *everything[1:]
    if len(cells) == 2 or len(opened.shape) == 2 or (start, stop) == (0, opened.shape[0]):
        return everything
    depth = model.card.cell[0]
    halo = model.card.halos["decoder"][0] + model.card.halos.get("decoder-bottom", (0,))[0]
    low, high = max(start // depth - halo, 0), min(-(-stop // depth) + halo, cells[0])
    return slice(0, n), slice(low, high), slice(start - low * depth, stop - low * depth)


def _groups(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _read(items: Sequence[_Item], options: Options) -> None:
    """Tokens of frames of one model and grid, cut to what is wanted."""
    model = items[0].model
    tops = read_levels(
        model,
        "top",
        [StoredLevel(item.opened.sections[1], item.setting.top_coded, np.ones(item.shape, bool)) for item in items],
        None,
        options,
    )
    richer = [i for i, item in enumerate(items) if item.stored is not None]
    stored = [
        StoredLevel(items[i].opened.sections[2], items[i].setting.bottom_coded, mask)
        for i in richer
        if (mask := items[i].stored) is not None
    ]
    bottoms = dict(
        zip(richer, read_levels(model, "bottom", stored, [tops[i] for i in richer], options), strict=True)
        if richer
        else ()
    )
    for i, (item, top) in enumerate(zip(items, tops, strict=True)):
        if item.uses_bottom:
            item.bottom = _completed(item, top, bottoms.get(i), options)
        item.top = _cut(top, item, model.card.lattice[0])


def _completed(item: _Item, top: Tokens, bottom: Tokens | None, options: Options) -> Tokens:
    """Bottom tokens of what is wanted of a frame, those that are not stored made up."""
    model = item.model
    assert model.card.refine is not None
    shape = (item.shape[0], *(n * r for n, r in zip(item.shape[1:], model.card.refine, strict=True)))
    if bottom is None:
        bottom = np.full(shape, model.unknown, np.int64)
    pieces = bottom[item.pieces]
    todo = pieces == model.unknown
    if todo.any():
        keys = draw_keys(model.model.card.digest, top, shape)[item.pieces]
        make_up(model, pieces, todo, top[item.pieces], keys, options)
    return pieces[:, _scaled(item.window, model.card.tokens_per_cell("bottom")[0])]


def _cut(top: Tokens, item: _Item, per_cell: int) -> Tokens:
    return top[item.pieces, _scaled(item.window, per_cell)]


def _scaled(cells: slice, times: int) -> slice:
    return slice(cells.start * times, cells.stop * times)


def _synthesise(items: Sequence[_Item], options: Options) -> None:
    """Voxels of frames that may share an inference, as many pieces at a time as one call may hold."""
    model = items[0].model
    ndim = len(model.card.stride)
    extent = math.prod(items[0].top.shape[1:]) * math.prod(model.card.stride)
    many = max(1, options.block_voxels // extent)
    for item in items:
        depth = transform.section_shape(item.opened.out_shape, ndim)
        item.voxels = np.empty((len(item.top), *depth), item.opened.frame.dtype.newbyteorder("="))
    todo = [(item, piece) for item in items for piece in range(len(item.top))]
    for i in range(0, len(todo), many):
        runs = []
        for item, pairs in itertools.groupby(todo[i : i + many], key=lambda pair: pair[0]):
            numbers = [piece for _, piece in pairs]
            runs.append((item, slice(numbers[0], numbers[-1] + 1)))
        image = _image(model, runs, options)
        ends = np.cumsum([run.stop - run.start for _, run in runs])
        for (item, run), part in zip(runs, np.split(image, ends[:-1]), strict=True):
            _store(part, item, run)


def _image(model: TokenModel, runs: Sequence[tuple[_Item, slice]], options: Options) -> Image:
    top = np.concatenate([item.top[run] for item, run in runs])
    if not runs[0][0].uses_bottom:
        return model.decode(top, options)
    bottom = np.concatenate([item.bottom[run] for item, run in runs if item.bottom is not None])
    keep = np.concatenate([_counts(item)[run] for item, run in runs])
    return model.decode_both(top, bottom, None if keep.all() else keep, options)


def _counts(item: _Item) -> Mask:
    """Where bottom tokens count: everywhere at tier prior, where they are stored at tier full."""
    assert item.bottom is not None
    if item.tier is Tier.PRIOR or item.stored is None:
        return np.ones(item.bottom.shape, bool)
    per_cell = item.model.card.tokens_per_cell("bottom")[0]
    return item.stored[item.pieces, _scaled(item.window, per_cell)]


def _store(image: NDArray[np.float32], item: _Item, run: slice) -> None:
    ndim = image.ndim - 1
    if ndim == 3:
        image = image[:, item.planes]
    extent = item.voxels.shape[1:]
    image = np.ascontiguousarray(image[(slice(None), *(slice(n) for n in extent))])
    grey = item.contrast.to_grey(image)
    window = transform.Window(*item.opened.frame.window) if item.opened.frame.window else None
    item.voxels[run] = transform.from_grey(grey, window, item.voxels.dtype)
