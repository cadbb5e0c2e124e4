"""Token grids of a trained vector-quantised model, and the crops that priors learn from.

Who trains the codebooks writes grids with `write_tokens`; priors read them with `read_tokens`. No image and no network
is known here: a token is an integer below K with a code vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec.errors import SpecError

Grid = NDArray[np.uint8]
Split = Literal["train", "held_out"]

LEVELS = ("top", "bottom")
SPLITS: tuple[Split, Split] = ("train", "held_out")
REFINE = 2
"""Bottom cells per top cell along each axis."""
CODES = 256
"""Size K of a codebook; as a token, the number that stands for a token not known yet."""


@dataclass(frozen=True)
class TokenData:
    """Grids of one model, by split and level.

    Attributes
    ----------
    grids : dict
        ``grids[split][level]``: arrays of shape ([z,] y, x), uint8. Bottom grids are the top's of the same place in
        the list, twice as fine along each axis.
    codebooks : dict
        ``codebooks[level]``: shape (\\*lattice, K, D), float32: where a cell of the network has several tokens, each
        place has a codebook of its own; (K, D) otherwise.
    """

    grids: Mapping[Split, Mapping[str, Sequence[Grid]]]
    codebooks: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        _check(self)

    @property
    def levels(self) -> tuple[str, ...]:
        """("top",) or ("top", "bottom")."""
        return tuple(level for level in LEVELS if level in self.codebooks)

    @property
    def ndim(self) -> int:
        """Axes of a grid: 2 or 3."""
        return self.grids["train"]["top"][0].ndim

    @property
    def lattice(self) -> tuple[int, ...]:
        """Top tokens of a cell of the network along each axis, 1 or 2."""
        return self.codebooks["top"].shape[:-2] or (1,) * self.ndim

    def per_cell(self, level: str) -> tuple[int, ...]:
        """Tokens of a level in a cell along each axis."""
        return self.lattice if level == "top" else (REFINE,) * self.ndim


def write_tokens(
    path: Path,
    *,
    train: Mapping[str, Sequence[Grid]],
    held_out: Mapping[str, Sequence[Grid]],
    codebooks: Mapping[str, NDArray[np.float32]],
) -> None:
    """Write the token grids of a trained model.

    Parameters
    ----------
    path : Path
        The ``.npz`` to write.
    train, held_out : mapping of level to list of ndarray, shape ([z,] y, x), uint8
        Level "top" and, in a two-level model, "bottom". Grids of one level may differ in shape. Shifted, turned and
        mirrored cuts of the training volumes are worth having: there are few tokens in a volume.
    codebooks : mapping of level to ndarray, shape (256, D) or (\\*lattice, 256, D), float32
        The second form where several tokens stand for one cell of the network: a codebook for each place.

    Raises
    ------
    SpecError
        If levels, shapes or tokens do not belong together.

    Notes
    -----
    Members, pickling off: ``<split>_<level>`` holds the grids of a split ("train", "held_out") end to end, C order,
    uint8; ``<split>_<level>_shapes`` their shapes, int32 (n, ndim); ``codebook_<level>`` the code vectors, float32.
    """
    data = TokenData({"train": train, "held_out": held_out}, codebooks)
    arrays: dict[str, NDArray[np.generic]] = {}
    for level in data.levels:
        arrays[f"codebook_{level}"] = np.asarray(codebooks[level], np.float32)
        for split in SPLITS:
            grids = data.grids[split][level]
            arrays[f"{split}_{level}"] = np.concatenate([np.asarray(grid, np.uint8).ravel() for grid in grids])
            arrays[f"{split}_{level}_shapes"] = np.array([grid.shape for grid in grids], np.int32)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its options


def read_tokens(path: Path) -> TokenData:
    """Read what `write_tokens` wrote.

    Raises
    ------
    SpecError
        If a member is missing, or grids, shapes and codebooks do not belong together.
    """
    with np.load(path, allow_pickle=False) as file:
        levels = [level for level in LEVELS if f"codebook_{level}" in file]
        try:
            codebooks = {level: file[f"codebook_{level}"] for level in levels}
            grids = {
                split: {level: _cut(file[f"{split}_{level}"], file[f"{split}_{level}_shapes"]) for level in levels}
                for split in SPLITS
            }
        except KeyError as error:
            raise SpecError(f"{path.name}: {error.args[0]}. Write it with write_tokens.", name="path") from error
    return TokenData(grids, codebooks)


def _cut(flat: NDArray[np.uint8], shapes: NDArray[np.int32]) -> list[Grid]:
    """Grids that lie end to end."""
    ends = np.cumsum(shapes.prod(axis=1, dtype=np.int64))
    if not len(ends) or ends[-1] != flat.size:
        raise SpecError(f"tokens: {flat.size} tokens do not fill {len(shapes)} grids.", name="tokens")
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]


def _check(data: TokenData) -> None:
    if not data.levels or data.levels[0] != "top" or set(data.levels) != set(data.codebooks):
        raise SpecError("tokens: needs a codebook of 'top', may have 'bottom'.", name="codebooks")
    for split in SPLITS:
        counts = {level: len(data.grids[split].get(level, ())) for level in data.levels}
        if len(set(counts.values())) != 1 or not counts["top"]:
            raise SpecError(f"tokens: {split!r} has {counts} grids, needs equally many, at least one.", name=split)
    ndim = data.ndim
    for level in data.levels:
        book = data.codebooks[level]
        lattice = book.shape[:-2]
        several = level == "top" and len(data.levels) == 1
        if book.ndim < 2 or book.shape[-2] != CODES or (lattice and not (several and len(lattice) == ndim)):
            raise SpecError(f"tokens: codebook {level!r} has shape {book.shape}, needs (256, D).", name="codebooks")
    if ndim not in (2, 3) or max(data.lattice) > REFINE or ("bottom" in data.levels and ndim != 2):
        message = f"tokens: {ndim}-D grids of levels {data.levels}, lattice {data.lattice}."
        raise SpecError(f"{message} Grids are 2-D or 3-D, two levels 2-D, lattices 1 or 2.", name="tokens")
    for split in SPLITS:
        for i, top in enumerate(data.grids[split]["top"]):
            ragged = any(n % m for n, m in zip(top.shape, data.lattice, strict=False))
            if top.ndim != ndim or not top.size or ragged:
                raise SpecError(f"tokens: top grid {i} of {split!r} has shape {top.shape}.", name=split)
            for bottom in data.grids[split].get("bottom", ())[i : i + 1]:
                if bottom.shape != tuple(REFINE * n for n in top.shape):
                    message = f"tokens: bottom grid {i} of {split!r} is {bottom.shape}, its top {top.shape}."
                    raise SpecError(f"{message} The bottom is twice as fine.", name=split)


Batch = dict[str, NDArray[np.int64]]
"""Equally large windows of each level, shape (n, [z,] y, x)."""


class Windows:
    """Draws batches of equally large windows of the training grids; the same seed draws the same ones.

    Parameters
    ----------
    data : TokenData
    edge : int
        Largest window along each axis, in cells; smaller where the grids drawn are.
    seed : int
    """

    def __init__(self, data: TokenData, edge: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self._data = data
        self._cells = np.array([np.array(top.shape) // data.lattice for top in data.grids["train"]["top"]])
        sizes = self._cells.prod(axis=1).astype(float)
        self._weights = sizes / sizes.sum()
        self._shapes = np.minimum(self._cells, edge)

    def batch(self, n_cells: int) -> Batch:
        """Windows of about `n_cells` cells together."""
        window = self._shapes[self.random.choice(len(self._weights), p=self._weights)]
        weights = self._weights * (self._cells >= window).all(axis=1)
        size = max(1, round(n_cells / window.prod()))
        chosen = self.random.choice(len(weights), size, p=weights / weights.sum())
        corners = self.random.integers(self._cells[chosen] - window + 1)
        parts = [_cut_out(self._data, "train", i, corner, window) for i, corner in zip(chosen, corners, strict=True)]
        return _stack(parts)


def batches(data: TokenData, split: Split, *, edge: int | None = None, n_cells: int = 8192) -> Iterator[Batch]:
    """All grids of a split, or windows of at most `edge` cells that tile them, some `n_cells` cells at a time.

    The largest come first.
    """
    by_shape: dict[tuple[int, ...], list[dict[str, Grid]]] = {}
    for i, top in enumerate(data.grids[split]["top"]):
        cells = np.array(top.shape) // data.lattice
        step = cells if edge is None else np.full(data.ndim, edge)
        for place in np.ndindex(*(-(-cells // step))):
            corner: NDArray[np.int64] = step * np.array(place)
            part = _cut_out(data, split, i, corner, np.minimum(step, cells - corner))
            by_shape.setdefault(part["top"].shape, []).append(part)
    for shape, parts in sorted(by_shape.items(), reverse=True):
        many = max(1, n_cells * math.prod(data.lattice) // math.prod(shape))
        for j in range(0, len(parts), many):
            yield _stack(parts[j : j + many])


def _cut_out(
    data: TokenData, split: Split, i: int, corner: NDArray[np.int64], window: NDArray[np.int64]
) -> dict[str, Grid]:
    """A window of grid `i`, given in cells."""
    out = {}
    for level in data.levels:
        scale = np.array(data.per_cell(level))
        box = tuple(slice(int(a), int(b)) for a, b in zip(scale * corner, scale * (corner + window), strict=True))
        out[level] = data.grids[split][level][i][box]
    return out


def _stack(parts: Sequence[Mapping[str, Grid]]) -> Batch:
    return {level: np.stack([part[level] for part in parts]).astype(np.int64) for level in parts[0]}
