"""Token priors beat order 0, resume where they were, and what is exported decodes what it encodes."""

from __future__ import annotations

import copy
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("onnx", reason="training needs the extra 'train'")
pytest.importorskip("onnxruntime", reason="training needs the extra 'train'")

import onnxruntime as ort
import torch
from numpy.typing import NDArray

from zarr_emcodec.entropy.coder import decode, encode_many
from zarr_emcodec.entropy.tables import Tables, ideal_bits
from zarr_emcodec.errors import ModelError, SpecError
from zarr_emcodec.train import prior, prior_loop
from zarr_emcodec.train.arch.prior_ar import TokenTransformer, TransformerConfig
from zarr_emcodec.train.prior_ar_fit import transformer_config
from zarr_emcodec.train.prior_fit import FitConfig, cluster, freeze
from zarr_emcodec.train.prior_loop import PriorTrainer, Progress, load_finished
from zarr_emcodec.train.tokens import CODES, TokenData, Windows, batches, read_tokens, write_tokens

pytestmark = pytest.mark.extra

RNG = np.random.default_rng(11)
Array = NDArray[Any]


def smooth(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """A field whose neighbours are alike, values in [0, 1]."""
    field = random.normal(size=shape)
    for axis in [*range(len(shape))] * 3:
        field = field + np.roll(field, 1, axis) + np.roll(field, -1, axis)
    low, high = field.min(), field.max()
    return np.asarray((field - low) / (high - low))


def make_tokens(n: int, random: np.random.Generator, *, two: bool = True) -> dict[str, list[NDArray[np.uint8]]]:
    """Top grids of some 40 tokens in use, and bottom grids that say the same with a little noise."""
    out: dict[str, list[NDArray[np.uint8]]] = {"top": [], "bottom": []}
    for _ in range(n):
        fine = smooth((20, 16), random)
        coarse = fine.reshape(10, 2, 8, 2).mean((1, 3))
        out["top"].append(np.floor(coarse * 39.99).astype(np.uint8))
        out["bottom"].append(np.floor(fine * 99.99).astype(np.uint8))
    return out if two else {"top": out["top"]}


def feed(tokens: Array, top: Array | None) -> dict[str, Array]:
    return {"tokens": tokens} if top is None else {"tokens": tokens, "top": top}


def session(data: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def codebook() -> NDArray[np.float32]:
    k = np.arange(CODES)
    return np.stack([k / 20.0, np.sin(k / 5.0), np.cos(k / 5.0)], 1).astype(np.float32)


@pytest.fixture(scope="module")
def data() -> TokenData:
    random = np.random.default_rng(2)
    torch.set_num_threads(1)
    grids = {"train": make_tokens(60, random), "held_out": make_tokens(12, random)}
    return TokenData(grids, {"top": codebook(), "bottom": codebook()})  # type: ignore[arg-type]


def test_tables_are_exact_shares_of_a_power_of_two() -> None:
    weights = RNG.gamma(0.3, size=(5, CODES)) + 1e-12
    weights[0, 1:] = 1e-12  # one token takes all
    tables = freeze(weights, 14)
    shares = tables.freqs[1:].astype(np.int64)
    assert (shares >= 1).all()
    assert (shares.sum(1) == 1 << 14).all()
    assert shares[0, 0] == (1 << 14) - CODES
    ideal = weights / weights.sum(1, keepdims=True)
    bits = (ideal[1:] * -np.log2(shares[1:, :CODES] / 2.0**14)).sum(1)
    entropy = (ideal[1:] * -np.log2(ideal[1:])).sum(1)
    assert (bits - entropy < 0.06).all()


def test_clusters_find_what_distributions_there_are() -> None:
    kinds = RNG.dirichlet(np.full(CODES, 0.05), 6) + 1e-4
    kinds /= kinds.sum(1, keepdims=True)
    share = torch.from_numpy(kinds[RNG.integers(0, 6, 4000)]).float()
    found = cluster(share, 12, np.random.default_rng(0)).numpy()
    assert np.abs(found[:, None] - kinds).sum(2).min(0).max() < 1e-3


def test_token_files_come_back_and_what_does_not_fit_is_refused(data: TokenData, tmp_path: Path) -> None:
    path = tmp_path / "tokens.npz"
    train, held_out = (dict(data.grids[split]) for split in ("train", "held_out"))
    train = {level: [*grids, grids[0][:4, :6]] if level == "top" else [*grids, grids[0][:8, :12]]
             for level, grids in train.items()}  # fmt: skip
    write_tokens(path, train=train, held_out=held_out, codebooks=data.codebooks)
    back = read_tokens(path)
    assert back.levels == ("top", "bottom")
    for a, b in zip(train["bottom"], back.grids["train"]["bottom"], strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(back.codebooks["top"], data.codebooks["top"])
    wrong = {**held_out, "bottom": held_out["top"]}
    with pytest.raises(SpecError, match="twice as fine"):
        write_tokens(path, train=train, held_out=wrong, codebooks=data.codebooks)
    with pytest.raises(SpecError, match="has shape"):
        TokenData({"train": {"top": [np.zeros((3, 4), np.uint8)]}, "held_out": {"top": [np.zeros((4, 4), np.uint8)]}},
                  {"top": np.zeros((2, 2, CODES, 5), np.float32)})  # fmt: skip
    np.savez(path, codebook_top=codebook())
    with pytest.raises(SpecError, match="write_tokens"):
        read_tokens(path)


def test_windows_keep_levels_together_and_tiles_cover_each_token_once(data: TokenData) -> None:
    marked: dict[str, dict[str, list[Any]]] = {
        "train": {"top": [], "bottom": []},
        "held_out": {"top": [], "bottom": []},
    }
    for split in marked:
        for i in range(3):
            top = RNG.integers(0, CODES, (5 + i, 7)).astype(np.uint8)
            marked[split]["top"].append(top)
            marked[split]["bottom"].append(top.repeat(2, 0).repeat(2, 1))
    tokens = TokenData(marked, data.codebooks)  # type: ignore[arg-type]
    a, b = Windows(tokens, 4, seed=1).batch(100), Windows(tokens, 4, seed=1).batch(100)
    assert a["top"].shape == (6, 4, 4)
    assert np.array_equal(a["top"], b["top"])
    assert np.array_equal(a["bottom"][:, ::2, 1::2], a["top"])
    parts = list(batches(tokens, "held_out", edge=4))
    assert sum(part["top"].size for part in parts) == sum(grid.size for grid in marked["held_out"]["top"])
    assert all(np.array_equal(part["bottom"][:, 1::2, ::2], part["top"]) for part in parts)
    lattice = TokenData({s: {"top": [np.arange(48, dtype=np.uint8).reshape(6, 8)]} for s in ("train", "held_out")},
                        {"top": np.zeros((2, 2, CODES, 3), np.float32)})  # fmt: skip
    corners = Windows(lattice, 1, seed=0).batch(64)["top"][:, 0, 0]
    assert set(np.unique(corners % 8 % 2)) | set(np.unique(corners // 8 % 2)) == {0}


def small(data: TokenData, checkpoint: Path, **changes: Any) -> PriorTrainer:
    fit = FitConfig(tokens=1024, seeds=2048, strength=300.0, warm_up=5, rate=0.02)
    return PriorTrainer(data, checkpoint, arch={"width": 24, "tables": 24}, fit=fit, **changes)


def steps(trainer: PriorTrainer, n: int) -> None:
    for part in trainer.fits.values():
        for i in range(n):
            part.advance(i / n)
        part.check()


@pytest.fixture(scope="module")
def trained(data: TokenData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished checkpoint, of a run that was cut short once."""
    path = tmp_path_factory.mktemp("prior") / "a.pt"
    first = small(data, path)
    steps(first, 40)
    first.save({})
    second = small(data, path)
    assert all(part.step == 40 for part in second.fits.values())
    for a, b in zip(first.fits["top"].model.parameters(), second.fits["top"].model.parameters(), strict=True):
        assert torch.equal(a, b)
    second.run(1e-9, lambda _: None)
    return path


def test_priors_beat_order_0_and_the_coder_reaches_their_code_length(trained: Path, data: TokenData) -> None:
    figures = load_finished(trained).figures
    json.dumps(figures, allow_nan=False)
    for level, saved in (("top", 0.3), ("bottom", 0.5)):
        own = figures[level]
        assert own["soft_bits"] < own["order0_train_bits"] - saved
        assert own["chosen_bits"] < own["order0_train_bits"] - saved
        assert own["n"] == sum(g.size for g in data.grids["held_out"][level]) == sum(g["n"] for g in own["groups"])
        assert own["coded_bits"] == pytest.approx(own["chosen_bits"], rel=0.03)  # streams of some 240 tokens
        assert own["top5"] >= own["accuracy"] > 2 / CODES
    assert figures["bottom"]["groups"][3]["soft_bits"] < figures["bottom"]["groups"][0]["soft_bits"]


def test_what_is_exported_decodes_what_it_encodes(trained: Path, data: TokenData, tmp_path: Path) -> None:
    card = prior.export_prior(trained, tmp_path / "model")
    assert set(card["files"]) == {"prior.onnx", "prior-bottom.onnx", "tables.npz"}
    assert card["bottom"]["policy"] == "draw"
    with np.load(tmp_path / "model" / "tables.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file}
    batch = next(batches(data, "held_out"))
    for level, name in (("top", "prior.onnx"), ("bottom", "prior-bottom.onnx")):
        tables = Tables.from_arrays({k.removeprefix(f"{level}_"): v for k, v in arrays.items() if k.startswith(level)})
        graph = session((tmp_path / "model" / name).read_bytes())
        top = batch["top"] if level == "bottom" else None
        tokens = batch[level]
        groups = [tuple(position) for (position,) in card[level]["groups"]]

        def index(known: Array, at: Any, graph: Any = graph, top: Array | None = top) -> Array:
            scores = graph.run(None, feed(known, top))[0]
            return np.asarray(1 + scores.argmax(1)[at].ravel()).astype(np.uint16)

        known, items = np.full_like(tokens, CODES), []
        places = [(slice(None), *(slice(p, None, 2) for p in position)) for position in groups]
        for at in places:
            items.append((tokens[at].ravel().astype(np.int32), index(known, at)))
            known[at] = tokens[at]
        streams = encode_many(items, tables)
        promised = sum(ideal_bits(symbols, i, tables) for symbols, i in items)
        # one thousandth, and what starting four streams costs
        assert 8 * sum(map(len, streams)) <= 1.001 * promised + 8 * 4 * 5
        decoded = np.full_like(tokens, CODES)
        for at, stream in zip(places, streams, strict=True):
            decoded[at] = decode(stream, index(decoded, at), tables).reshape(decoded[at].shape)
        assert np.array_equal(decoded, tokens)


def test_a_finished_run_is_left_alone_and_an_unfinished_one_is_not_exported(
    trained: Path, data: TokenData, tmp_path: Path
) -> None:
    before = trained.read_bytes()
    told: list[Progress] = []
    small(data, trained).run(1e-9, told.append)
    assert trained.read_bytes() == before
    assert told[-1].validation == load_finished(trained).figures
    unfinished = small(data, tmp_path / "b.pt")
    steps(unfinished, 1)
    unfinished.save({})
    with pytest.raises(ModelError, match="not finished"):
        prior.export_prior(tmp_path / "b.pt", tmp_path)
    with pytest.raises(SpecError, match="another checkpoint"):
        small(data, trained, kind="autoregressive")


def test_a_fit_that_gets_worse_goes_back_slows_down_and_ends(data: TokenData, tmp_path: Path) -> None:
    trainer = small(data, tmp_path / "d.pt")
    part = trainer.fits["top"]
    part.check()
    kept = copy.deepcopy(part.model.state_dict())
    with torch.no_grad():
        for parameter in part.model.parameters():
            parameter.mul_(3)
    part.check()
    assert part.bits > part.best_bits + 0.1
    for name, value in part.model.state_dict().items():
        assert torch.equal(value, kept[name])
    part.train_step(0.0)
    assert part.optimiser.param_groups[0]["lr"] < 0.5 * 0.02
    for other in trainer.fits.values():
        other.pace = 0.01
    started = time.monotonic()
    trainer.run(60.0, lambda _: None)
    assert time.monotonic() - started < 60
    assert load_finished(tmp_path / "d.pt").priors.keys() == {"top", "bottom"}


def test_a_lattice_has_tables_for_each_of_its_codebooks(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    grids = {}
    for split, n in (("train", 30), ("held_out", 6)):
        tops = make_tokens(n, random, two=False)["top"]
        for top in tops:
            top[::2, ::2] = 255 - top[::2, ::2]  # the same thing in another codebook
        grids[split] = {"top": tops}
    books = np.stack([codebook()[::-1], codebook(), codebook(), codebook()]).reshape(2, 2, CODES, 3)
    data = TokenData(grids, {"top": books})  # type: ignore[arg-type]
    trainer = small(data, tmp_path / "c.pt")
    steps(trainer, 40)
    trainer.run(1e-9, lambda _: None)
    model, tables = load_finished(tmp_path / "c.pt").priors["top"]
    assert tables.n_tables == 1 + 4 * 24
    likeliest = tables.freqs[1:, :CODES].argmax(1).reshape(4, 24)
    used = (tables.freqs[1:, :CODES].max(1) > 100).reshape(4, 24)  # tables that nobody chose are flat
    assert used.sum(1).min() > 5
    assert (likeliest[0][used[0]] > 200).all()  # the first place's tokens are the high ones
    assert (likeliest[1:][used[1:]] < 50).all()
    figures = load_finished(tmp_path / "c.pt").figures["top"]
    assert figures["chosen_bits"] < figures["order0_train_bits"] - 0.2
    assert model.config.places == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with pytest.raises(SpecError, match="lattice"):
        transformer_config(data)


def test_the_transformer_sees_earlier_tokens_and_the_top_only() -> None:
    torch.manual_seed(0)
    model = TokenTransformer(TransformerConfig(window=(6, 8), width=16, layers=2, heads=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tokens, top = (
        torch.from_numpy(RNG.integers(0, CODES, (2, 6, 8))),
        torch.from_numpy(RNG.integers(0, CODES, (2, 3, 4))),
    )
    with torch.inference_mode():
        before = model(tokens, top)
        tokens[:, 2, 3] = (tokens[:, 2, 3] + 1) % CODES
        after = model(tokens, top)
        place = 2 * 8 + 3
        assert torch.equal(before[:, : place + 1], after[:, : place + 1])
        assert (before[:, place + 1 :] - after[:, place + 1 :]).abs().amax(2).min() > 0
        top[:, 2, 3] = (top[:, 2, 3] + 1) % CODES
        assert (model(tokens, top) - after).abs().amax(2).min() > 0
    a, b, other = (model.sample((6, 8), seed, top) for seed in (5, 5, 6))
    assert a.shape == (2, 6, 8)
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


def test_the_command_trains_both_kinds_exports_and_compares(
    data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens.npz"
    write_tokens(path, train=data.grids["train"], held_out=data.grids["held_out"], codebooks=data.codebooks)
    monkeypatch.setattr(prior_loop, "FitConfig", functools.partial(FitConfig, seeds=1024))
    common = [str(path), "--minutes", "0.02", "--width", "16", "--layers", "1", "--every", "0.5", "--checkpoint"]
    ar, parallel = str(tmp_path / "ar.pt"), str(tmp_path / "p.pt")
    runs = [
        [*common, ar, "--kind", "autoregressive"],
        [*common, parallel, "--tables", "8", "--export", str(tmp_path / "model"), "--beside", ar],
    ]
    for arguments in runs:
        monkeypatch.setattr(sys, "argv", ["prior", *arguments])
        prior.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    compared = lines[-1]["compared"]
    gap = compared["parallel"]["soft_bits"] - compared["autoregressive"]["soft_bits"]
    assert compared["gap_bits"] == pytest.approx(gap, abs=1e-4)
    assert compared["autoregressive"]["n"] == lines[-1]["bottom"]["n"]
    assert lines[-2]["files"].keys() == {"prior.onnx", "prior-bottom.onnx", "tables.npz"}
    assert (tmp_path / "model" / "prior.onnx").exists()
    with pytest.raises(ModelError, match="autoregressive"):
        prior.export_prior(Path(ar), tmp_path)
