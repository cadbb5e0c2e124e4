"""The networks and tables of a token model, each behind one call: images to codes, tokens to images, context to tables.

Arrays in, arrays out. Images are in standard deviations of the chunk's tissue (`Contrast`), tokens are int64 grids in
which the number of codes stands for "not known".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zarr_emcodec._types import Shape
from zarr_emcodec.codecs.inference import Feed, in_pieces
from zarr_emcodec.entropy.tables import Tables
from zarr_emcodec.errors import ModelError
from zarr_emcodec.runtime import Model, Options
from zarr_emcodec.runtime.model import TABLES
from zarr_emcodec.runtime.token_card import LATTICE, PRIOR_PARTS, TokenCard

Tokens = NDArray[np.int64]
Image = NDArray[np.float32]

_STEPS_PER_OCTAVE = 28  # of the deviation: 2.5 % apart
_SAMPLE = 1 << 18  # voxels that contrast is measured on
_TAIL = 0.005  # share of the voxels on either side that are drawn in first: dirt and holes are no contrast


@dataclass(frozen=True)
class Contrast:
    """Mean and standard deviation of a chunk's tissue, a byte each (FORMAT.md, "Frames of token models").

    Attributes
    ----------
    mean : int
        In grey levels, 0 to 255.
    deviation : int
        ``0.5 * 2 ** (deviation / 28)`` grey levels.
    """

    mean: int
    deviation: int

    @classmethod
    def of_tissue(cls, grey: NDArray[np.float32]) -> Contrast:
        """Contrast of grey levels of any shape, robust against a few outliers."""
        flat = grey.reshape(-1)
        flat = flat[:: max(1, flat.size // _SAMPLE)]
        low, high = np.quantile(flat, (_TAIL, 1 - _TAIL))
        drawn_in = np.clip(flat, low, high).astype(np.float64)
        steps = _STEPS_PER_OCTAVE * math.log2(max(float(drawn_in.std()), 0.5) / 0.5)
        return cls(round(min(max(float(drawn_in.mean()), 0.0), 255.0)), min(round(steps), 255))

    @property
    def scale(self) -> float:
        """The standard deviation in grey levels."""
        return float(np.float32(0.5 * 2 ** (self.deviation / _STEPS_PER_OCTAVE)))

    def to_image(self, grey: NDArray[np.float32]) -> Image:
        """Grey levels as a network takes them."""
        return (grey - np.float32(self.mean)) * np.float32(1 / self.scale)

    def to_grey(self, image: Image) -> NDArray[np.float32]:
        """Inverse of `to_image`, in the same memory."""
        image *= np.float32(self.scale)
        image += np.float32(self.mean)
        return image


class Candidates(NamedTuple):
    """The codes nearest to each cell's vector, nearest first, both of shape (n, count, \\*grid).

    ``excess`` is in squared standard deviations, summed over the block of voxels, above the nearest code's.
    """

    excess: NDArray[np.float32]
    code: Tokens


class TokenModel:
    """A model's networks and tables.

    Parameters
    ----------
    model : Model
        Of codec "vqvae".
    """

    def __init__(self, model: Model) -> None:
        assert model.card.tokens is not None
        self.model = model
        self.card: TokenCard = model.card.tokens

    @property
    def unknown(self) -> int:
        """What stands for a token that is not known."""
        return self.card.codes

    def grid(self, extent: Shape, level: str) -> Shape:
        """Tokens of a level on each axis of a padded image."""
        per_cell = self.card.tokens_per_cell(level)
        return tuple(n // c * p for n, c, p in zip(extent, self.card.cell, per_cell, strict=True))

    @cached_property
    def tables(self) -> Mapping[str, Tables]:
        """Frequency tables by level; a level without tables is stored in fixed fields."""
        if TABLES not in self.model.card.decoder_files:
            return {}
        arrays = self.model.tables()
        out = {}
        for level in self.card.levels:
            own = {name.removeprefix(f"{level}_"): a for name, a in arrays.items() if name.startswith(f"{level}_")}
            if not own:
                continue
            tables = Tables.from_arrays(own)
            n_tables = 1 + self._n_choices(level) * math.prod(self._places(level))
            if tables.n_tables != n_tables or (tables.sizes[1:] != self.card.codes + 1).any() or tables.lows.any():
                raise ModelError(
                    f"model '{self.model.card.id}': tables of level '{level}' are not {n_tables - 1} of "
                    f"{self.card.codes} codes. Reinstall the model."
                )
            out[level] = tables
        return out

    @cached_property
    def means(self) -> NDArray[np.int64]:
        """For policy "mean": the bottom token nearest to the mean code vector under each table, by table."""
        found = self.model.tables().get("bottom_mean")
        n_tables = self.tables["bottom"].n_tables
        if found is None or found.shape != (n_tables,) or found.dtype.kind != "u" or (found >= self.card.codes).any():
            raise ModelError(
                f"model '{self.model.card.id}': its prior takes the mean, and tables.npz does not say it for "
                f"{n_tables} tables of {self.card.codes} codes. Reinstall the model."
            )
        return found.astype(np.int64)

    def nearest(self, level: str, image: Image, decoded: Image | None, count: int, options: Options) -> Candidates:
        """The codes nearest to each cell of a level.

        Parameters
        ----------
        level : {"top", "bottom"}
        image : ndarray, shape (n, \\*extent), float32
            Padded to whole cells.
        decoded : ndarray or None
            The image that the top tokens alone decode to, for the bottom.
        count : int
            How many codes.
        options : Options
            ``block_voxels`` bounds one call.
        """
        part: Any = "encoder" if decoded is None else "encoder-bottom"
        grid = self.grid(image.shape[1:], level)
        count = min(count, self.card.codes)
        out = np.empty((len(image), 2 * count, *grid), np.float32)  # codes are exact in float32
        inputs = {"image": Feed(image[:, None], self.card.cell)}
        if decoded is not None:
            inputs["decoded"] = Feed(decoded[:, None], self.card.cell)

        def call(piece: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            return _smallest(self.model.run(part, piece, options), count)

        self._in_cells(call, inputs, Feed(out, self.card.tokens_per_cell(level)), self.card.halos[part], options)
        return Candidates(out[:, :count], out[:, count:].astype(np.int64))

    def decode(self, top: Tokens, options: Options) -> Image:
        """The image (n, \\*extent) of top tokens (n, \\*grid) alone."""
        name = "tokens" if self.card.refine is None else "top"

        def call(piece: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            return self.model.run("decoder", piece, options)

        return self._decode(call, {name: Feed(top, self.card.lattice)}, self.card.halos["decoder"], options)

    def decode_both(self, top: Tokens, bottom: Tokens, keep: NDArray[np.bool_] | None, options: Options) -> Image:
        """The image of tokens of both levels.

        Parameters
        ----------
        top, bottom : ndarray, shape (n, \\*grid of the level), int64
        keep : ndarray of bool, shape of `bottom`, optional
            Where the bottom counts; elsewhere the image is that of the top.
        options : Options
            ``block_voxels`` bounds one call.
        """
        fine = self.card.tokens_per_cell("bottom")
        inputs = {"top": Feed(top, self.card.lattice), "bottom": Feed(bottom, fine)}
        if keep is not None:
            inputs["keep"] = Feed(keep, fine)
        halos = (self.card.halos[part] for part in ("decoder", "decoder-bottom"))
        halo = tuple(a + b for a, b in zip(*halos, strict=True))
        voxels = tuple(c // f for c, f in zip(self.card.cell, fine, strict=True))

        def call(piece: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            outputs = self.model.run_all("decoder", {"top": piece["top"]}, options)
            if len(outputs) != 2:
                raise ModelError(f"model '{self.model.card.id}': decoder.onnx gives no features. Reinstall the model.")
            image, features = outputs
            more = self.model.run("decoder-bottom", {"bottom": piece["bottom"], "features": features}, options)
            if "keep" in piece:
                more = np.where(repeated(piece["keep"], voxels)[:, None], more, np.float32(0))
            return image + more

        return self._decode(call, inputs, halo, options)

    def _n_choices(self, level: str) -> int:
        """Tables that a token of one place in a cell may have."""
        prior = self.card.priors.get(level)
        return 1 if prior is None else prior.n_tables

    def _places(self, level: str) -> Shape:
        """Places in a cell whose tokens have tables of their own, on each axis."""
        return self.card.lattice if level == "top" else (1,) * len(self.card.lattice)

    def table_index(self, level: str, tokens: Tokens, top: Tokens | None, options: Options) -> NDArray[np.uint16]:
        """The coder's table of each token of a level, from those that are known; without a prior that of its place."""
        places = self._places(level)
        place = np.arange(math.prod(places)).reshape(places)
        repeats = [-(-n // p) for n, p in zip(tokens.shape[1:], places, strict=True)]
        first = np.tile(place, repeats)[tuple(slice(n) for n in tokens.shape[1:])] * self._n_choices(level) + 1
        # the coder's table 0 is none of the model's
        return (self._choices(level, tokens, top, options) + first).astype(np.uint16)

    def _choices(self, level: str, tokens: Tokens, top: Tokens | None, options: Options) -> NDArray[np.uint16]:
        """Which of the tables of its place each token has."""
        out = np.zeros(tokens.shape, np.uint16)
        prior = self.card.priors.get(level)
        if prior is None:
            return out
        part: Any = PRIOR_PARTS[level]
        refine = self.card.refine if level == "bottom" and self.card.refine else (1,) * (tokens.ndim - 1)
        # pieces begin where the lattices of groups, of places and of the other level do
        unit = tuple(math.lcm(LATTICE, n, r) for n, r in zip(self._places(level), refine, strict=True))
        inputs = {"tokens": Feed(tokens, unit)}
        if level == "bottom":
            assert top is not None
            inputs["top"] = Feed(top, tuple(u // r for u, r in zip(unit, refine, strict=True)))

        def call(piece: Mapping[str, NDArray[Any]]) -> NDArray[np.uint16]:
            # of equal scores the first
            return np.asarray(self.model.run(part, piece, options).argmax(1), np.uint16)

        units = tuple(-(-n // u) for n, u in zip(tokens.shape[1:], unit, strict=True))
        halo = tuple(-(-h // u) for h, u in zip(prior.halo, unit, strict=True))
        voxels = math.prod(self.card.stride) // math.prod(refine)
        in_pieces(call, inputs, Feed(out, unit), units, halo, math.prod(unit) * max(voxels, prior.n_tables), options)
        return out

    def _decode(self, call: Any, inputs: Mapping[str, Feed], halo: Shape, options: Options) -> Image:
        tokens = next(iter(inputs.values()))
        grid = zip(tokens.array.shape[1:], self.card.lattice, self.card.cell, strict=True)
        out = np.empty((len(tokens.array), 1, *(n // p * c for n, p, c in grid)), np.float32)
        self._in_cells(call, inputs, Feed(out, self.card.cell), halo, options)
        return out[:, 0]

    def _in_cells(self, call: Any, inputs: Mapping[str, Feed], out: Feed, halo: Shape, options: Options) -> None:
        assert out.scale is not None
        cells = tuple(n // s for n, s in zip(out.array.shape[2:], out.scale, strict=True))
        in_pieces(call, inputs, out, cells, halo, math.prod(self.card.cell), options)


def _smallest(distances: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The `count` smallest distances above the least, then their codes, along axis 1."""
    if count == 1:
        code = distances.argmin(1)[:, None]
        return np.concatenate([np.zeros(code.shape, np.float32), code.astype(np.float32)], 1)
    code = np.argsort(distances, axis=1, kind="stable")[:, :count]
    near = np.take_along_axis(distances, code, 1)
    return np.concatenate([near - near[:, :1], code.astype(np.float32)], 1)


def repeated(values: NDArray[Any], times: Shape) -> NDArray[Any]:
    """Each value of the last axes repeated along them.

    Examples
    --------
    >>> repeated(np.array([[1, 2]]), (2, 2)).tolist()
    [[1, 1, 2, 2], [1, 1, 2, 2]]
    """
    for axis, n in enumerate(times, values.ndim - len(times)):
        values = np.repeat(values, n, axis)
    return values


@lru_cache(maxsize=16)
def token_model_of(model: Model) -> TokenModel:
    """The networks and tables of a model, set up once per process."""
    return TokenModel(model)
