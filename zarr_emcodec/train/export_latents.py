"""Checkpoints of sections and volumes to the model directory of fitted latents: networks, tables, a card.

    python -m zarr_emcodec.train.export_latents --data FOLDER --sections FILE --volumes FILE

What a fit will make of latents is not known here, so tables are counted on symbols of the shared encoder.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zarr_emcodec import transform
from zarr_emcodec._types import Symbols
from zarr_emcodec.codecs import INRSpec, decode_many, encode_many
from zarr_emcodec.codecs.quantise import SymbolCosts
from zarr_emcodec.entropy.tables import build_tables
from zarr_emcodec.quality.measure import squared_error
from zarr_emcodec.runtime import canonical_digest, options
from zarr_emcodec.runtime.grid_card import GridCard
from zarr_emcodec.train.data import CropSampler, Source, VolumeSampler
from zarr_emcodec.train.export import SHAPES, AnalysisOnly, training_facts, write_card
from zarr_emcodec.train.export_variable import SCALES
from zarr_emcodec.train.graph import macs, to_onnx
from zarr_emcodec.train.latents import VOLUMES, LatentsModel, LatentsTrainConfig, load_latents
from zarr_emcodec.train.latents_tables import TableFit

LEVELS = 256  # all that a frame's byte can name
BUCKETS = 16  # runs of levels that share what activity means
BANDS = (4, 16, 64)  # where bands of channels end; the last takes the rest
RATIOS = (16.0, 1024.0)
_MEASURED_RATIOS = (32.0, 64.0, 128.0, 256.0)
_CROPS = {2: 40, 3: 24}
_BYTE_FROM = 1 << 14  # weights: from there on a byte each costs hundredths of a decibel, and halves the file


class _Decoder(nn.Module):
    """Symbols to grey levels, with the steps and the coarseness of each level looked up in tables."""

    gain: Tensor
    variance: Tensor
    coarseness: Tensor

    def __init__(self, model: LatentsModel, config: LatentsTrainConfig) -> None:
        super().__init__()
        self.synthesis = model.synthesis
        steps = steps_of(config)
        self.register_buffer("gain", model.gains(steps))
        self.register_buffer("variance", 2 * torch.exp(2 * model.log_scale)[None])
        # the network saw no coarser or finer steps than these: beyond, it is told the nearest that it knows
        known = steps.clamp(config.step_low, config.step_high)
        self.register_buffer("coarseness", model.synthesis.powers(model.coarseness(known)))

    def forward(self, symbols: Tensor, level: Tensor) -> Tensor:
        one = [1] * (symbols.ndim - 2)
        gain = torch.index_select(self.gain, 0, level)
        film = self.synthesis.film(torch.index_select(self.coarseness, 0, level))
        latents = symbols * gain.reshape(-1, self.gain.shape[1], *one)
        spread = torch.sqrt(self.variance + gain * gain).reshape(-1, self.gain.shape[1], *one)
        grey: Tensor = self.synthesis.synthesise(latents, latents / spread, film)
        return grey


def steps_of(config: LatentsTrainConfig) -> Tensor:
    """Quantiser step of each level in grey levels, (LEVELS,)."""
    return torch.from_numpy(np.geomspace(config.arch.step_min, config.arch.step_max, LEVELS).astype(np.float32))


def export(
    checkpoints: Sequence[Path],
    folder: Path,
    *,
    name: str,
    version: int,
    sources: Sequence[Source],
    licence: str = "BSD-3-Clause",
    crops: int | None = None,
    measured: bool = True,
) -> dict[str, Any]:
    """Write a model directory.

    Parameters
    ----------
    checkpoints : sequence of Path
        As `LatentsTrainer` writes them: of sections, of volumes, or one of each.
    folder : Path
        The model directory; files of the same names are replaced.
    name, version : str, int
        The model's id is ``name@version``; never reuse a version.
    sources : sequence of Source
        The training volumes: their statistics fill the tables.
    licence : str
        Of the weights.
    crops : int, optional
        That tables are counted on, for each grid.
    measured : bool
        Whether the card gets figures of held-out data.

    Returns
    -------
    dict
        The card.
    """
    files: dict[str, bytes] = {}
    arrays: dict[str, NDArray[Any]] = dict(build_tables(SCALES, SHAPES).to_arrays())
    grids: list[GridCard] = []
    facts: dict[str, Any] = {}
    costs: dict[str, float] = {}
    for path in checkpoints:
        model, config, steps_taken = load_latents(path)
        grid = grid_of(config)
        grids.append(grid)
        with torch.inference_mode():
            files |= networks(model, config, grid)
            drawn = _symbols_of(model, config, sources, crops or _CROPS[grid.ndim])
            arrays |= fit_tables(grid, SymbolCosts(_tables(arrays)), drawn)
            arrays[f"gain_{grid.ndim}d"] = model.gains(steps_of(config)).numpy().astype(np.float32)
            costs |= _costs(model, config, grid)
        facts[f"{grid.ndim}d"] = training_facts(config.to_dict(), steps_taken, sources)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    files["tables.npz"] = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    card = _card(f"{name}@{version}", grids, files, costs, licence)
    card["training"] = facts
    write_card(folder, card)
    if measured:
        card["measured"] = {"held_out": measure(card["id"], folder.parent, sources)}
        write_card(folder, card)
    (folder / "README.md").write_text(_readme(card, sum(map(len, files.values()))), encoding="utf-8")
    return card


def measure(model_id: str, models: Path, sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Ratio and PSNR without a fit on held-out pieces, each a chunk of its own; all bytes of frames count."""
    sections = CropSampler(sources, 512, seed=1).validation
    # one of each volume: neighbouring sections tell the same
    chunks = {str(section.shape): section[:512, :512] for section in sections}
    volumes = VolumeSampler(sources, VOLUMES.crop, seed=1).validation if any(s.isotropic for s in sources) else []
    chunks |= {f"volume {i}": volume[:, :128, :128] for i, volume in enumerate(volumes[:1])}
    rows = []
    with options(model_path=(models,)):
        for chunk in chunks.values():
            grey = np.clip(np.rint(chunk), 0, 255).astype(np.uint8)
            for ratio in _MEASURED_RATIOS:
                spec = INRSpec(backbone="latents", ratio=ratio, model=model_id, effort=0)
                (frame,) = encode_many(spec, [grey])
                psnr = 10 * math.log10(255**2 * grey.size / squared_error(grey, decode_many([frame])[0]))
                row = {"shape": list(grey.shape), "asked": ratio, "ratio": round(grey.nbytes / len(frame), 2)}
                rows.append({**row, "psnr_db": round(psnr, 2)})
    return rows


def _readme(card: dict[str, Any], n_bytes: int) -> str:
    """What a person wants to know of a model, from its card."""
    cost = card["mac_per_voxel"]
    rows = "\n".join(
        f"| {' x '.join(map(str, row['shape']))} | {row['ratio']:g} | {row['psnr_db']:.2f} |"
        for row in card["measured"].get("held_out", [])
    )
    what = {2: "sections", 3: "volumes"}
    lines = []
    for grid in card["decoder"]["grids"]:
        cell, macs_of_voxel = " x ".join(map(str, grid["stride"])), cost[f"decode_{grid['ndim']}d"]
        lines.append(
            f"{what[grid['ndim']]}: {grid['channels']} latents for each {cell} voxels, {macs_of_voxel:.0f} "
            "multiply-accumulates a voxel to decode"
        )
    grids = "; ".join(lines)
    low, high = card["ratio_range"]
    paragraphs = [
        f"# {card['id']}",
        f"What chunks share whose latents are fitted to each of them, for ratios {low:g} to {high:g}: the decoder that "
        "the fit works for, the encoder that it starts from, and the tables of the entropy model, whole numbers all.",
        f"{grids[0].upper()}{grids[1:]}. {n_bytes / 1e6:.1f} MB.",
        f"| held out | ratio | PSNR without a fit, dB |\n|---|---|---|\n{rows}",
        f"Licence of the weights: {card['licence']}. Everything else is in card.json.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def grid_of(config: LatentsTrainConfig) -> GridCard:
    """The grid that a network's card describes."""
    arch = config.arch
    halos = arch.halo()
    halo = max(halos[0], halos[1]) if isinstance(halos[0], int) else None
    each = (halo,) * 2 if halo is not None else tuple(max(a, b) for a, b in zip(*halos, strict=True))
    return GridCard(
        ndim=config.ndim,
        stride=config.cell,
        channels=arch.channels,
        levels=LEVELS,
        halo=each,
        bands=(*(end for end in BANDS if end < arch.channels), arch.channels),
        scales=len(SCALES),
    )


def networks(model: LatentsModel, config: LatentsTrainConfig, grid: GridCard) -> dict[str, bytes]:
    """Encoder and decoder of a grid as ONNX, by file."""
    cells = (2, 3) if grid.ndim == 2 else (2, 2, 3)
    edges = [n * stride for n, stride in zip(cells, grid.stride, strict=True)]
    grey = torch.full((2, 1, *edges), 128.0)
    inputs = {"symbols": torch.zeros(2, grid.channels, *cells), "level": torch.zeros(2, dtype=torch.int64)}
    return {
        f"{grid.part('encoder')}.onnx": to_onnx(
            AnalysisOnly(model.analysis), {"grey": grey}, ["latents"], byte_from=_BYTE_FROM
        ),
        f"{grid.part('decoder')}.onnx": to_onnx(_Decoder(model, config), inputs, ["grey"], byte_from=_BYTE_FROM),
    }


def fit_tables(grid: GridCard, costs: SymbolCosts, drawn: Sequence[Sequence[Symbols]]) -> dict[str, NDArray[Any]]:
    """Members of ``tables.npz`` for a grid, but its gains.

    Parameters
    ----------
    grid : GridCard
    costs : SymbolCosts
    drawn : sequence of sequence of ndarray
        For each of some levels, evenly spread over the ladder, symbols (n, C, \\*grid) of some crops.
    """
    fit = TableFit(grid, costs)
    centres = ((np.arange(len(drawn)) + 0.5) * LEVELS / len(drawn)).astype(int)
    columns: list[list[NDArray[Any]]] = [[] for _ in range(5)]
    for symbols in drawn:
        index, kind = fit.base(symbols)
        stored = (index > 0).reshape(1, -1, *[1] * grid.ndim)
        kept = [np.where(stored, mine, 0) for mine in symbols]
        weight = fit.weights(kept)
        edge, move = fit.edges_and_moves(kept, index, kind, weight)
        row: tuple[NDArray[Any], ...] = (index, kind, weight, edge, move)
        for found, value in zip(columns, row, strict=True):
            found.append(value)
    base, shape, weights, edges, moves = (np.stack(column) for column in columns)
    return {
        f"base_{grid.ndim}d": _between(base, centres),
        f"shape_{grid.ndim}d": shape[np.abs(np.arange(LEVELS)[:, None] - centres).argmin(1)],
        f"weights_{grid.ndim}d": weights,
        f"edges_{grid.ndim}d": edges,
        f"moves_{grid.ndim}d": moves,
    }


def _between(base: NDArray[np.int16], centres: NDArray[np.intp]) -> NDArray[np.int16]:
    """Indices of scales at all levels: even between those that were counted; none where the nearest has none."""
    levels = np.arange(LEVELS)
    nearest = np.abs(levels[:, None] - centres).argmin(1)
    out = np.zeros((LEVELS, base.shape[1]), np.int16)
    for channel, index in enumerate(base.T):
        known = index > 0
        if known.any():
            between = np.rint(np.interp(levels, centres[known], index[known]))
            out[:, channel] = np.where(known[nearest], between, 0)
    return out


def _symbols_of(
    model: LatentsModel, config: LatentsTrainConfig, sources: Sequence[Source], crops: int
) -> list[list[Symbols]]:
    """Symbols of training crops at the middle level of each bucket."""
    if config.ndim == 2:
        sections = CropSampler(sources, 512, seed=1)
        draws = [sections.raw_crop(512) for _ in range(crops)]
    else:
        volumes = VolumeSampler(sources, config.crop, seed=1)
        draws = [volumes.raw_crop((32, 128, 128)) for _ in range(crops)]
    padded = (torch.from_numpy(transform.pad_to_stride(draw[None], config.cell))[None] for draw in draws)
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for found in map(model.analysis, padded):
        groups.setdefault(tuple(found.shape), []).append(found)  # of one shape are counted together
    latents = [torch.cat(group) for group in groups.values()]
    steps = steps_of(config)
    out = []
    for bucket in range(BUCKETS):
        step = steps[[int((bucket + 0.5) * LEVELS / BUCKETS)]]
        out.append([model.quantise(mine, step).numpy().astype(np.int32) for mine in latents])
    return out


def _tables(arrays: dict[str, NDArray[Any]]) -> Any:
    from zarr_emcodec.entropy.tables import Tables

    return Tables.from_arrays(arrays)


def _costs(model: LatentsModel, config: LatentsTrainConfig, grid: GridCard) -> dict[str, float]:
    """Multiply-accumulates of a voxel, both ways."""
    cells = (4, 4) if grid.ndim == 2 else (2, 2, 2)
    edges = [n * stride for n, stride in zip(cells, grid.stride, strict=True)]
    symbols = torch.zeros(1, grid.channels, *cells)
    decode = macs(_Decoder(model, config), (symbols, torch.zeros(1, dtype=torch.int64)))
    encode = macs(AnalysisOnly(model.analysis), (torch.zeros(1, 1, *edges),))
    voxels = math.prod(edges)
    return {f"decode_{grid.ndim}d": round(decode / voxels, 1), f"encode_{grid.ndim}d": round(encode / voxels, 1)}


def _card(
    model_id: str, grids: Sequence[GridCard], files: dict[str, bytes], costs: dict[str, float], licence: str
) -> dict[str, Any]:
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in sorted(files.items())}
    decoder = {
        "files": {file: sha for file, sha in hashes.items() if not file.startswith("encoder")},
        "backbone": "latents",
        "grids": [
            {
                "ndim": grid.ndim,
                "stride": list(grid.stride),
                "channels": grid.channels,
                "levels": grid.levels,
                "halo": list(grid.halo),
                "bands": list(grid.bands),
                "scales": grid.scales,
            }
            for grid in grids
        ],
    }
    return {
        "format": 1,
        "id": model_id,
        "codec": "inr",
        "digest": f"sha256:{canonical_digest(decoder).hex()}",
        "decoder": decoder,
        "encoder": {"files": {file: sha for file, sha in hashes.items() if file.startswith("encoder")}},
        "ratio_range": list(RATIOS),
        "voxel_nm": {"z": [4, 120], "y": [4, 16], "x": [4, 16]},
        "mac_per_voxel": costs,
        "licence": licence,
        "measured": {},
    }


def main() -> None:
    """Two checkpoints to one model directory."""
    from zarr_emcodec.train.recipes import standard_sources

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the volumes of the shipped models")
    parser.add_argument("--sections", type=Path, required=True, help="checkpoint of the 2-D network")
    parser.add_argument("--volumes", type=Path, required=True, help="checkpoint of the 3-D network")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder that gets <name>/")
    parser.add_argument("--name", default="inr-latents")
    parser.add_argument("--version", type=int, default=1, help="never reuse one that was released")
    args = parser.parse_args()
    card = export(
        [args.sections, args.volumes],
        args.models / args.name,
        name=args.name,
        version=args.version,
        sources=standard_sources(args.data),
    )
    print(json.dumps({key: card[key] for key in ("id", "digest", "mac_per_voxel", "ratio_range")}))


if __name__ == "__main__":
    main()
