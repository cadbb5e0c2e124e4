"""Scales and shapes in, frozen integer frequency tables out; model files in, the same tables out, checked.

A table gives each symbol of a range an integer share of ``2**precision``; one further share, the escape's, stands for
everything outside. Tables are data of a model: they are built once, at export, and never computed where data are
coded. Floats occur in `build_tables` alone; even the cost of a symbol, which decides how many lanes an encoder uses,
is an integer, so that two machines write the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr_emcodec.entropy.gengauss import bin_masses
from zarr_emcodec.errors import ModelError, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

SKIP = 0
"""Index of the table without symbols: what it is chosen for is zero, and is not coded."""
ESCAPE_BITS_MIN = 8
"""Bits that the value of an escaped symbol takes at least, beside the escape itself."""

SEARCH_BITS = 8
"""Binary logarithm of the parts that `Tables.search` cuts a table's slots into."""
COST_SHIFT = 16
"""Fractional bits of an integer cost."""

_PRECISIONS = range(8, 16)  # 15 at most: a certain symbol's share is 2**precision, and that must fit 16 bits
_MAX_TABLES = 1024  # 1024 tables of 15 bits take 192 MiB of decoder look-up; more is not a model, it is an attack
_MAX_HALF_WIDTH = 1023
# A symbol gets its own slot while it deserves at least a quarter of one. Least expected code length over scales 0.15
# to 500 and shapes 0.7 to 2: fewer slots cost escapes, more take shares from symbols that occur.
_MIN_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Tables:
    """Integer frequency tables; table 0 stands for "always zero, not coded".

    Checked when built and read-only from then on. What is derived from them (costs, decoder look-ups) is computed on
    first use and kept.

    Parameters
    ----------
    freqs : ndarray, shape (n_tables, width), uint16
        Row ``t``: the shares of the symbols ``lows[t] .. lows[t] + sizes[t] - 2``, then the escape's in column
        ``sizes[t] - 1``, each at least 1, adding up to ``2**precision``; zeros behind. Row 0 is all zeros.
    lows : ndarray, shape (n_tables,), int16
        Smallest symbol of each table; ``lows[0]`` is 0.
    sizes : ndarray, shape (n_tables,), int16
        Columns used by each table, the escape's included: at least 2; ``sizes[0]`` is 0.
    precision : int
        8 to 15.

    Raises
    ------
    ModelError
        If anything above does not hold.
    """

    freqs: NDArray[np.uint16]
    lows: NDArray[np.int16]
    sizes: NDArray[np.int16]
    precision: int

    def __post_init__(self) -> None:
        for name, dtype, ndim in (("freqs", np.uint16, 2), ("lows", np.int16, 1), ("sizes", np.int16, 1)):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
                found = f"{array.ndim}-D {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
                raise ModelError(f"tables: {name!r} must be a {ndim}-D array of {np.dtype(dtype)} (found {found}).")
            frozen = np.array(array, dtype=dtype, order="C")
            frozen.setflags(write=False)
            object.__setattr__(self, name, frozen)
        _check(self)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Tables:
        """Read tables from the members of an ``.npz`` file, which the caller opened with pickling off.

        Raises
        ------
        ModelError
            If a member is missing, or the tables are inconsistent.
        """
        missing = [name for name in ("freqs", "lows", "sizes", "precision") if name not in arrays]
        if missing:
            raise ModelError(f"tables: no member {missing[0]!r}. The model's tables file is incomplete.")
        precision = np.asarray(arrays["precision"])
        if precision.ndim != 0 or precision.dtype.kind not in "iu":
            raise ModelError(f"tables: 'precision' must be one integer (found {precision.ndim}-D {precision.dtype}).")
        return cls(arrays["freqs"], arrays["lows"], arrays["sizes"], int(precision))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give the members that `from_arrays` reads, for ``numpy.savez``."""
        precision = np.array(self.precision, np.int64)
        return {"freqs": self.freqs, "lows": self.lows, "sizes": self.sizes, "precision": precision}

    @property
    def n_tables(self) -> int:
        """Number of tables, the skip table included."""
        return len(self.lows)

    @property
    def width(self) -> int:
        """Columns of the widest table."""
        return int(self.freqs.shape[1])

    @cached_property
    def bits(self) -> NDArray[np.uint8]:
        """Width of a fixed field that holds every ordinary symbol of a table, shape (n_tables,), in bits."""
        last = np.maximum(self.sizes.astype(np.int64) - 2, 0)
        return np.frexp(last.astype(np.float64))[1].astype(np.uint8)  # the exponent of frexp is the bit length

    @cached_property
    def starts(self) -> NDArray[np.uint16]:
        """First of a symbol's slots: the sum of the shares before it, shape (n_tables, width)."""
        ends = np.cumsum(self.freqs, axis=1, dtype=np.uint32)
        return (ends - self.freqs).astype(np.uint16)

    @cached_property
    def cost_units(self) -> NDArray[np.int64]:
        """Code length per symbol in units of ``2**-16`` bit, shape (n_tables, width); 0 in unused columns."""
        logs = _log2_units(np.maximum(self.freqs, 1).astype(np.uint64))
        return np.where(self.freqs > 0, (self.precision << COST_SHIFT) - logs, 0)

    @cached_property
    def cost_bits(self) -> NDArray[np.float32]:
        """Code length per symbol for an encoder's estimate of the rate, shape (n_tables, width), in bits.

        Column ``symbol - lows[t]`` for the symbols that the table holds. Column ``sizes[t] - 1`` for all others: the
        escape and the shortest value behind it. Unused columns hold infinity, row 0 zeros.
        """
        cost = (self.cost_units / 2.0**COST_SHIFT).astype(np.float32)
        cost[self.freqs == 0] = np.inf
        cost[SKIP] = 0
        coded = np.arange(1, self.n_tables)
        cost[coded, self.sizes[1:] - 1] += ESCAPE_BITS_MIN
        cost.setflags(write=False)
        return cost

    @cached_property
    def modes(self) -> NDArray[np.int64]:
        """The likeliest symbol of each table (no escape; the first of equal ones), shape (n_tables, 4).

        Its value, its share, its first slot, and its cost in units of ``2**-16`` bit.
        """
        rows = np.arange(self.n_tables)
        ordinary = np.arange(self.width) < self.sizes[:, None] - 1
        column = np.where(ordinary, self.freqs, 0).argmax(axis=1)
        found = [self.lows + column, *(of[rows, column] for of in (self.freqs, self.starts, self.cost_units))]
        return np.stack(found, axis=1).astype(np.int64)

    @cached_property
    def search(self) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Small look-ups from a slot to its symbol, for a decoder that would rather search than fill its caches.

        Returns
        -------
        bounds : ndarray, shape (n_tables, width + 1), uint16
            First slot of each column, and one past the last.
        columns : ndarray, shape (n_tables, 2**SEARCH_BITS), uint16
            Column of the first slot of each of so many equal parts of a table's slots: where the search begins.
        """
        total = 1 << self.precision
        bounds = np.concatenate([self.starts, np.full((self.n_tables, 1), total, np.uint16)], axis=1)
        firsts = np.arange(0, total, total >> SEARCH_BITS)
        columns = np.zeros((self.n_tables, len(firsts)), np.uint16)
        for t in range(1, self.n_tables):
            columns[t] = np.searchsorted(bounds[t, : self.sizes[t]], firsts, side="right") - 1
        return bounds, columns

    def decoding(self, used: NDArray[np.intp]) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
        """Look-ups from a slot to its symbol, filled in for the tables named and for the skip table.

        Parameters
        ----------
        used : ndarray, integer
            Indices of the tables that are about to be used.

        Returns
        -------
        steps : ndarray, shape (n_tables * 2**precision,), uint32
            At ``(t << precision) + slot``: the symbol's share in the upper 16 bits, the slot's place within it in the
            lower. The skip table's single symbol owns every slot, so that coding it changes nothing.
        columns : ndarray, same shape, uint16
            Column of the symbol in `freqs`.
        """
        steps, columns, filled = self._decoding
        for t in used[~filled[used]]:
            freqs = self.freqs[t].astype(np.uint32)
            column = np.repeat(np.arange(self.width, dtype=np.uint16), freqs)
            slot = np.arange(1 << self.precision, dtype=np.uint32)
            row = slice(int(t) << self.precision, (int(t) + 1) << self.precision)
            steps[row] = freqs[column] << 16 | (slot - self.starts[t][column])
            columns[row] = column
            # Last: a thread that finds the flag finds the row. Two that fill one row write the same.
            filled[t] = True
        return steps, columns

    @cached_property
    def _decoding(self) -> tuple[NDArray[np.uint32], NDArray[np.uint16], NDArray[np.bool_]]:
        n_slots = self.n_tables << self.precision
        # Left unwritten, the pages of tables that nobody uses cost no memory.
        steps, columns = np.empty(n_slots, np.uint32), np.empty(n_slots, np.uint16)
        filled = np.zeros(self.n_tables, bool)
        certain = 1 << self.precision
        steps[:certain] = np.arange(certain, dtype=np.uint32) | np.uint32(certain << 16)
        columns[:certain] = 0
        filled[SKIP] = True
        return steps, columns, filled


def build_tables(scales: Sequence[float], shapes: Sequence[float], *, precision: int = 14) -> Tables:
    """Freeze generalised Gaussians of mean zero into integer tables; for model export only.

    Parameters
    ----------
    scales : sequence of float
        Standard deviations, in quantiser steps. Beyond about 400 a growing part of the symbols is escaped.
    shapes : sequence of float
        Exponents; 1 is Laplace, 2 is Gaussian.
    precision : int
        Shares of a table add up to ``2**precision``; 8 to 15.

    Returns
    -------
    Tables
        Table 0 is the skip table; ``1 + i_shape * len(scales) + i_scale`` has that shape and scale.

    Raises
    ------
    SpecError
        If a scale or shape is not positive, or there are none or too many.

    Notes
    -----
    Shares are rounded by largest remainder, ties to the smaller symbol, each at least 1. The range of a table ends
    where a symbol would deserve less than a quarter of a share; the escape takes the mass beyond.

    Examples
    --------
    >>> tables = build_tables([0.5, 2.0], [1.0], precision=10)
    >>> tables.n_tables, tables.lows.tolist(), tables.bits.tolist()
    (3, [0, -3, -10], [0, 3, 5])
    """
    if precision not in _PRECISIONS:
        raise SpecError(f"build_tables: precision must be 8 to 15 (found {precision}).", name="precision")
    for name, values in (("scales", scales), ("shapes", shapes)):
        if not len(values) or not all(np.isfinite(value) and value > 0 for value in values):
            raise SpecError(f"build_tables: {name} must be positive numbers, at least one.", name=name, value=values)
    if len(scales) * len(shapes) >= _MAX_TABLES:
        raise SpecError(f"build_tables: at most {_MAX_TABLES - 1} tables.", name="scales", value=len(scales))
    rows = [_freeze(scale, shape, precision) for shape in shapes for scale in scales]
    freqs = np.zeros((1 + len(rows), max(map(len, rows))), np.uint16)
    for freq, row in zip(freqs[1:], rows, strict=True):
        freq[: len(row)] = row
    sizes = np.array([0, *map(len, rows)], np.int16)
    return Tables(freqs, np.where(sizes > 0, 1 - sizes // 2, 0).astype(np.int16), sizes, precision)


def ideal_bits(symbols: NDArray[Any], index: NDArray[Any], tables: Tables) -> float:
    """Code length that the tables promise for these symbols, in bits, values of escaped symbols included.

    Parameters
    ----------
    symbols : ndarray, shape (n,), int32
    index : ndarray, shape (n,), uint8 or uint16
    tables : Tables

    Returns
    -------
    float
    """
    table = index.astype(np.int64)
    column = symbols - tables.lows[table].astype(np.int64)
    last = tables.sizes[table].astype(np.int64) - 1
    escaped = (table != SKIP) & ((column < 0) | (column >= last))
    units = tables.cost_units[table, np.where(escaped, last, np.maximum(column, 0))].sum()
    beyond = np.where(column < 0, -2 * column - 1, 2 * (column - last))[escaped]
    n_bytes = sum(int((beyond >= 1 << 7 * k).sum()) for k in range(1, 5)) + len(beyond)
    return float(int(units) / (1 << COST_SHIFT) + 8 * n_bytes)


def _freeze(scale: float, shape: float, precision: int) -> NDArray[np.int64]:
    """Integer shares of ``-h .. h`` and the escape for one distribution."""
    total = 1 << precision
    half = bin_masses(scale, shape, min(_MAX_HALF_WIDTH, total // 4))
    # The second limit: scales beyond the precision, where zero itself hardly deserves a slot, keep a range anyway.
    deserving = np.flatnonzero(half * total >= min(_MIN_SHARE, half[0] * total / 2))
    # The direct neighbours always get a slot: an escape costs some 20 bits, and data are rougher than their model.
    half = half[: max(1, deserving[-1]) + 1]
    masses = np.concatenate([half[:0:-1], half])
    shares = np.append(masses, max(0.0, 1 - masses.sum())) * total
    freqs: NDArray[np.int64] = np.maximum(1, np.floor(shares).astype(np.int64))
    while (lacking := total - int(freqs.sum())) != 0:
        # Largest remainder first; a stable sort leaves ties to the smaller symbol. Shares of 1 are never reduced.
        remainder = shares - freqs if lacking > 0 else np.where(freqs > 1, freqs - shares, -np.inf)
        n_changed = min(abs(lacking), len(freqs) if lacking > 0 else int((freqs > 1).sum()))
        freqs[np.argsort(-remainder, kind="stable")[:n_changed]] += 1 if lacking > 0 else -1
    return freqs


def _log2_units(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Binary logarithm of integers from 1 to 2**31, in units of 2**-16, rounded down; the same on every machine."""
    whole: NDArray[np.int64] = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
    mantissa = values << (31 - whole).astype(np.uint64)  # in [2**31, 2**32): its square still fits 64 bits
    logs = whole
    for _ in range(COST_SHIFT):
        mantissa = mantissa * mantissa >> np.uint64(31)
        carry = mantissa >> np.uint64(32)
        mantissa >>= carry
        logs = logs << 1 | carry.astype(np.int64)
    return logs


def _check(tables: Tables) -> None:
    """Raise ModelError unless every rule in the docstring of `Tables` holds."""
    freqs, lows, sizes = tables.freqs, tables.lows.astype(np.int64), tables.sizes.astype(np.int64)
    if tables.precision not in _PRECISIONS:
        raise ModelError(f"tables: precision must be 8 to 15 (found {tables.precision}).")
    if not 1 <= len(freqs) <= _MAX_TABLES or len(lows) != len(freqs) or len(sizes) != len(freqs):
        found = f"{len(freqs)} rows, {len(lows)} lows, {len(sizes)} sizes"
        raise ModelError(f"tables: rows, lows and sizes must be equally many, 1 to {_MAX_TABLES} (found {found}).")
    if sizes[SKIP] or lows[SKIP] or freqs[SKIP].any():
        raise ModelError("tables: table 0 must be empty; it stands for symbols that are not coded.")
    column = np.arange(freqs.shape[1])
    rules = (
        ("sizes must be 2 to the table's width", (sizes >= 2) & (sizes <= freqs.shape[1])),
        ("symbols must fit 16 bits", lows + sizes - 2 <= np.iinfo(np.int16).max),
        ("each share must be at least 1, with zeros behind", ((freqs > 0) == (column < sizes[:, None])).all(axis=1)),
        ("shares must add up to 2**precision", freqs.sum(axis=1, dtype=np.int64) == 1 << tables.precision),
    )
    for rule, holds in rules:
        wrong = np.flatnonzero(~holds[1:]) + 1
        if len(wrong):
            raise ModelError(f"tables: {rule} (table {wrong[0]} breaks this).")
