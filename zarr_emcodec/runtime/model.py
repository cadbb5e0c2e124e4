"""One model: its card, its files checked before use, its tables, its networks.

In: a directory, or files that came with a dataset. Out: integer tables and inference, never an unchecked byte. Knows
no frame and no Zarr.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import zipfile
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zarr_emcodec.errors import ModelError, ModelMismatchError
from zarr_emcodec.runtime.card import MAX_CARD_BYTES, Card, parse_card
from zarr_emcodec.runtime.options import Options, current
from zarr_emcodec.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from zarr_emcodec.runtime.grid_card import GridCard
    from zarr_emcodec.runtime.token_card import TokenCard

Part = Literal["encoder", "decoder", "encoder-bottom", "decoder-bottom", "prior", "prior-bottom",
               "context-0", "context-1", "context-2", "context-3", "hyper", "encoder-3", "decoder-3"]  # fmt: skip
"""A network of a model, by the name of its file; all but the first two are of token models, of entropy models or, "-3",
of volumes where a model has sections and volumes."""
CARD, TABLES = "card.json", "tables.npz"
MAX_FILE_BYTES = 1 << 28
_MAX_TABLE_BYTES = 1 << 26  # all arrays together, unpacked
_MAX_MEMBERS = 64
_ENCODER_ONLY = ("encoder", "training", "measured")  # what a card loses that travels with a decoder

# What numpy writes; checked before numpy reads, so that a header can neither ask for objects nor for memory.
_NPY_HEADER = re.compile(
    rb"\{'descr': '[<>|]([biuf])([1248])', 'fortran_order': (?:True|False), "
    rb"'shape': \(((?:\d{1,10}(?:, \d{1,10})*,?)?)\), \} *\n"
)


class Model:
    """A model whose card has been parsed; files are read at first use, once, and their SHA-256 checked.

    Two models are equal when their digests are. A pickled model holds its digest and directory, and is looked up again
    where it is loaded.

    Parameters
    ----------
    card : Card
        Of the model.
    card_text : bytes
        What it was parsed from.
    directory : Path, optional
        Where further files lie.
    files : mapping of str to bytes, optional
        Files at hand, looked at before `directory`.
    """

    def __init__(
        self,
        card: Card,
        card_text: bytes,
        *,
        directory: Path | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.card = card
        self.directory = directory
        self._card_text = card_text
        self._given = dict(files or {})
        self._checked: dict[str, bytes] = {}

    @property
    def can_encode(self) -> bool:
        """Whether an encoder came with it; neural fields are fitted and need none."""
        return bool(self.card.encoder_files) or (self.card.inr is not None and not self.card.inr.grids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and self.card.digest == other.card.digest

    def __hash__(self) -> int:
        return hash(self.card.digest)

    def __repr__(self) -> str:
        return f"Model({self.card.id!r}, {str(self.directory) if self.directory else 'in memory'!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        from zarr_emcodec.runtime.find import reopen_model

        return reopen_model, (self.card.digest, str(self.directory) if self.directory else None)

    def file(self, name: str) -> bytes:
        """Contents of one of the card's files.

        Raises
        ------
        ModelError
            If the card does not name it, or it cannot be read.
        ModelMismatchError
            If its SHA-256 is not the card's.
        """
        # Two threads may both get here: they store the same bytes.
        if name not in self._checked:
            expected = self.card.decoder_files.get(name) or self.card.encoder_files.get(name)
            if expected is None:
                raise ModelError(f"model '{self.card.id}' has no file '{name}'. {self._mend}")
            data = self._given[name] if name in self._given else self._read(name)
            found = hashlib.sha256(data).hexdigest()
            if found != expected:
                raise ModelMismatchError(
                    f"model '{self.card.id}': {name} has SHA-256 {found[:16]}..., its card says {expected[:16]}... "
                    f"({self._place}). {self._mend}",
                    expected=expected,
                    found=found,
                )
            self._checked[name] = data
        return self._checked[name]

    def _read(self, name: str) -> bytes:
        if self.directory is None:
            raise ModelError(f"model '{self.card.id}': {name} did not come with the dataset.")
        try:
            return read_bounded(self.directory / name, MAX_FILE_BYTES)
        except OSError as error:
            raise ModelError(f"model '{self.card.id}': {name} cannot be read ({error}). {self._mend}") from error

    @property
    def _place(self) -> str:
        return str(self.directory) if self.directory else "from the dataset"

    @property
    def _mend(self) -> str:
        return "Reinstall the model." if self.directory else "Restore the dataset's copy of the model."

    def tables(self) -> Mapping[str, NDArray[Any]]:
        """Arrays of ``tables.npz``, read-only, of integers, floats or booleans.

        Raises
        ------
        ModelError
            If the file is not a plain archive of such arrays, or is larger unpacked than 64 MiB.
        """
        return self._tables

    @cached_property
    def _tables(self) -> Mapping[str, NDArray[Any]]:
        return MappingProxyType(read_tables(self.file(TABLES), f"model '{self.card.id}': {TABLES}"))

    def decoder_files(self) -> dict[str, bytes]:
        """Everything that decoding needs, as files to put into a dataset: a card without encoder, networks, tables."""
        data = {key: value for key, value in json.loads(self._card_text).items() if key not in _ENCODER_ONLY}
        text = json.dumps(data, indent=1, ensure_ascii=False).encode("utf-8")
        return {CARD: text, **{name: self.file(name) for name in self.card.decoder_files}}

    def run(
        self, part: Part, inputs: Mapping[str, NDArray[Any]], options: Options | None = None
    ) -> NDArray[np.float32]:
        """One inference call.

        Parameters
        ----------
        part : {"encoder", "decoder", "encoder-bottom", "decoder-bottom", "prior", "prior-bottom", "context-0", ...}
            Which network.
        inputs : mapping of str to ndarray
            By input name; the first is the signal: (n, channels, \\*grid), float32, or tokens (n, \\*grid), int64.
        options : Options, optional
            The options in force when not given.

        Returns
        -------
        ndarray, float32
            (n, channels, \\*grid / stride) latents of an encoder, (n, 1, \\*grid * stride) grey levels of a decoder. Of
            tokens: images in standard deviations, distances to each code in place of latents, a prior's score for
            each table. Of a context: mean and scale, or mean, scale and gate, of each latent of a group's places.

        Raises
        ------
        ModelError
            If the network cannot run, or its output does not have that shape.
        """
        return self.run_all(part, inputs, options)[0]

    def run_all(
        self, part: Part, inputs: Mapping[str, NDArray[Any]], options: Options | None = None
    ) -> list[NDArray[np.float32]]:
        """Every output of one inference call; the first is checked as `run` says, further ones are float32."""
        if part.startswith(("encoder", "hyper")) and not self.can_encode:
            raise ModelError(f"model '{self.card.id}' came without its encoder ({self._place}), so it can only decode.")
        name = f"{part}.onnx"
        data = self.file(name)
        sha256 = self.card.decoder_files.get(name) or self.card.encoder_files[name]
        outputs = open_session(data, sha256, options or current()).run_all(inputs)
        output = outputs[0]
        expected = self._output_shape(part, next(iter(inputs.values())).shape)
        if output.shape != expected or any(o.dtype != np.float32 for o in outputs):
            raise ModelError(
                f"model '{self.card.id}': {name} gave {output.dtype} {output.shape}, its card means float32 {expected}."
            )
        return outputs

    def _output_shape(self, part: Part, shape: tuple[int, ...]) -> tuple[int, ...]:
        card = self.card
        if card.tokens is not None:
            return _token_output(card.tokens, part, shape)
        if card.inr is not None:
            return _grid_output(card.inr.grid(len(shape) - 2), part, shape) if card.inr.grids else (shape[0], 1)
        if card.context is not None and part.startswith("context"):
            group = card.context.groups[int(part.rpartition("-")[2])]
            return (shape[0], card.context.outputs * card.context.channels * len(group), *shape[2:])
        if card.context is not None and card.context.reaches:
            if part == "hyper":
                return (shape[0], card.context.hyper, *shape[2:])
            if part == "encoder":
                cells = (n // s for n, s in zip(shape[2:], card.stride, strict=True))
                return (shape[0], card.channels - card.context.hyper, *cells)
        grid = zip(shape[2:], card.stride, strict=False)
        if part == "encoder":
            return (shape[0], card.channels, *(size // stride for size, stride in grid))
        return (shape[0], 1, *(size * stride for size, stride in grid))


def _grid_output(grid: GridCard, part: Part, shape: tuple[int, ...]) -> tuple[int, ...]:
    cells = zip(shape[2:], grid.stride, strict=True)
    if part.startswith("encoder"):
        return (shape[0], grid.channels, *(size // stride for size, stride in cells))
    return (shape[0], 1, *(size * stride for size, stride in cells))


def _token_output(tokens: TokenCard, part: Part, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what a network of tokens gives for a first input of this shape."""
    if part.startswith("prior"):
        return (shape[0], tokens.priors["bottom" if part == "prior-bottom" else "top"].n_tables, *shape[1:])
    if part.startswith("decoder"):
        per_cell = tokens.tokens_per_cell("bottom" if part == "decoder-bottom" else "top")
        return (shape[0], 1, *(n // p * c for n, p, c in zip(shape[1:], per_cell, tokens.cell, strict=True)))
    per_cell = tokens.tokens_per_cell("bottom" if part == "encoder-bottom" else "top")
    return (shape[0], tokens.codes, *(n // c * p for n, c, p in zip(shape[2:], tokens.cell, per_cell, strict=True)))


def open_model(directory: Path) -> Model:
    """The model of a directory; its other files are not touched yet.

    Raises
    ------
    ModelError
        If there is no readable card.
    """
    where = directory / CARD
    try:
        text = read_bounded(where, MAX_CARD_BYTES)
    except OSError as error:
        raise ModelError(f"{where}: cannot be read ({error}). Reinstall the model.") from error
    return Model(parse_card(text, str(where)), text, directory=directory)


def read_bounded(path: Path, limit: int) -> bytes:
    """Contents of a regular file of at most `limit` bytes; ModelError if it is larger or no file."""
    if not path.is_file():  # a pipe would be waited for without end
        raise FileNotFoundError(f"no file {path}")
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        # the one byte more shows a file that grows; asking for the limit at once would set aside that much memory
        data = stream.read(min(size, limit) + 1)
    if len(data) > limit:
        raise ModelError(f"{path}: more than {limit} bytes.")
    return data


def read_tables(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """Arrays of an ``.npz`` file from an unknown hand.

    Parameters
    ----------
    data : bytes
        The archive.
    where : str
        What messages call it.

    Raises
    ------
    ModelError
        If it is no such archive, holds objects, text or structures, or claims more than 64 MiB or than it holds.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if len(members) > _MAX_MEMBERS or total > _MAX_TABLE_BYTES:
                raise ModelError(f"{where}: {len(members)} arrays, {total} bytes, allowed are {_MAX_TABLE_BYTES}.")
            if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
                raise ModelError(f"{where}: packed by a method that numpy does not write.")  # LZMA asks for memory
            raw = {member.filename.removesuffix(".npy"): archive.read(member) for member in members}
        return {name: _read_array(npy, f"{where}, array {name!r:.80}") for name, npy in raw.items()}
    except ModelError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on hostile bytes
        raise ModelError(f"{where}: not an archive of arrays ({error}). Reinstall the model.") from error


def _read_array(npy: bytes, where: str) -> NDArray[Any]:
    if npy[:8] != b"\x93NUMPY\x01\x00":
        raise ModelError(f"{where}: not a version 1 .npy file.")
    start = 10 + int.from_bytes(npy[8:10], "little")
    header = _NPY_HEADER.fullmatch(npy, 10, start)
    if not header:
        raise ModelError(f"{where}: neither integers nor floats, or its header is not as numpy writes it.")
    shape = [int(n) for n in header[3].split(b",") if n.strip()]
    claimed = math.prod(shape) * int(header[2])
    if claimed != len(npy) - start:
        raise ModelError(f"{where}: claims {claimed} bytes, holds {len(npy) - start}.")
    array: NDArray[Any] = np.load(io.BytesIO(npy), allow_pickle=False)
    array.setflags(write=False)
    return array
