"""Variable-rate models: the entropy model trained is the one exported; gradients; ten steps, a checkpoint, a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("onnx", reason="training needs the extra 'train'")

import torch
from torch import Tensor

from tests.volumes import Array, fibsem
from zarr_emcodec import VAECodec, options, psnr
from zarr_emcodec.codecs import decode_sections
from zarr_emcodec.errors import ModelError
from zarr_emcodec.runtime import Model, check_onnx, find_model
from zarr_emcodec.runtime.session import OnnxRuntimeNetwork
from zarr_emcodec.train import export_variable, variable
from zarr_emcodec.train.arch.context import (
    INDEX_MIN,
    N_SCALES,
    REACHES,
    Context,
    ContextConfig,
    GroupNet,
    laplace_scale,
)
from zarr_emcodec.train.arch.vae2d import ArchConfig
from zarr_emcodec.train.arch.vae3d import Arch3dConfig
from zarr_emcodec.train.arch.variable import LEVELS, VariableConfig, VariableVAE
from zarr_emcodec.train.arch.vqvae import VQVAE, VQConfig
from zarr_emcodec.train.cells import CellPlaces
from zarr_emcodec.train.context_graph import group_onnx, integer_group
from zarr_emcodec.train.data import Source
from zarr_emcodec.train.losses import laplace_bits, rate_distortion
from zarr_emcodec.train.start import variable_from_directory
from zarr_emcodec.train.variable import VariableTrainConfig, VariableTrainer, load_variable

pytestmark = pytest.mark.extra

FLAT = VariableConfig(
    ArchConfig(stride=8, channels=8, enc_widths=(8,), enc_blocks=(1,), dec_widths=(8,), dec_blocks=(1,)),
    hyper=3,
    hyper_width=8,
    context_width=12,
)
DEEP = VariableConfig(
    Arch3dConfig(strides=((2, 4, 4),), channels=6, enc_widths=(8,), enc_blocks=(1,), dec_widths=(8,), dec_blocks=(1,)),
    hyper=2,
    hyper_width=8,
    context_width=12,
)
CONFIGS = {
    2: VariableTrainConfig(FLAT, step_low=8, step_high=120, crop=(64, 64), batch=3, minutes=0.02, warm_up=1),
    3: VariableTrainConfig(DEEP, step_low=8, step_high=120, crop=(8, 32, 32), batch=3, minutes=0.02, warm_up=1),
}
DIMENSIONS = pytest.mark.parametrize("ndim", [2, 3])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("train") / "fibsem.npy"
    np.save(path, fibsem()[:, :96, :96])
    return Source(path, held_out=8, isotropic=True)


@pytest.fixture(autouse=True)
def few_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    make_hasty(monkeypatch)


def make_hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts and exports that look at less than they should: few crops, tables fitted at four levels."""
    for fit in ("fit_klt", "fit_block_klt"):
        monkeypatch.setattr(variable, fit, partial(hasty, getattr(variable, fit)))
    monkeypatch.setattr(export_variable, "_CROPS", {2: 2, 3: 2})
    monkeypatch.setattr(export_variable, "_FITTED_LEVELS", 4)


def hasty(fit: Callable[..., Any], draws: Iterable[Any], *words: Any) -> Any:
    """A fit to the first few of many draws."""
    return fit(islice(draws, 30), *words)


def lively(config: ContextConfig) -> Context:
    """An entropy model whose every weight says something."""
    torch.manual_seed(config.ndim)
    context = Context(config)
    with torch.no_grad():
        for net in context.nets:
            assert isinstance(net, GroupNet)
            for weight in (
                net.out,
                net.level,
                net.reach,
                net.embed_bias,
                net.window_bias,
                net.out_bias,
                *net.hidden_bias,
            ):
                weight.copy_(torch.randn_like(weight) * 0.2)
        context.base.copy_(torch.randn_like(context.base) * 3)
        context.base[0] += 20
        context.hyper_base[0] += 10
        context.reach.copy_(torch.randn_like(context.reach) * 3)
    return context


def powers_of(levels: Tensor) -> Tensor:
    coarse = levels.float() / (LEVELS - 1) * 2 - 1
    return torch.stack([coarse, coarse**2, coarse**3], 1)


class Seen:
    """What `Context.forward` decides on: hyper-latents, then group by group."""

    def __init__(self, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        self.residuals: list[Tensor] = []
        self.index: list[Tensor] = []
        self.symbols: list[Tensor] = []
        quantise = context.quantise

        def watched(residual: Tensor, index: Tensor) -> Tensor:
            self.residuals.append(residual)
            self.index.append(index)
            self.symbols.append(quantise(residual, index))
            return self.symbols[-1]

        monkeypatch.setattr(context, "quantise", watched)


@pytest.mark.parametrize(("ndim", "reaches"), [(2, 0), (3, 0), (2, REACHES)])
@torch.inference_mode()
def test_what_is_exported_is_what_was_trained(ndim: int, reaches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ContextConfig(ndim=ndim, channels=5, hyper=3, width=16, layers=2, reaches=reaches)
    context = lively(config)
    seen = Seen(context, monkeypatch)
    levels = torch.tensor([0, 100, 255])
    powers, one = powers_of(levels), (1,) * ndim
    shift = torch.tensor([[-1.0, 0, 1, 3, 5]]).repeat(3, 1)
    shift[1] = torch.tensor([0.0, -1, -1, 2, 4])
    grid = (3, 4, 5)[-ndim:]
    spread = torch.exp2(shift + 1).reshape(3, 1, 5, *one)
    values = 1.5 * spread * torch.randn(3, len(config.places), 5, *grid)
    hyper = 4 * torch.randn(3, 3, *grid)
    # sums of two references in 16ths; of sections alone none
    reach = torch.tensor([1, 4, 2]) if reaches else torch.zeros(3, dtype=torch.int64)
    total = torch.floor(32 * spread * torch.randn(values.shape)) if reaches else torch.zeros(values.shape)
    expected = total / 32 if reaches else None
    coded = context(values, hyper, shift, powers, reach, expected, hard=True)

    known = [np.clip(4 * seen.symbols[0].numpy(), -127, 127)]
    base = torch.cat([torch.ones(3, 1), powers], 1) @ context.base
    base += context.reach[reach] if reaches else 0
    own = torch.floor(base + 0.5).reshape(3, 1, 5, *one).numpy()
    b = shift.reshape(3, 1, 5, *one).numpy()
    for number, (group, net) in enumerate(zip(config.groups, context.nets, strict=True)):
        assert isinstance(net, GroupNet)
        data = group_onnx(integer_group(net, powers_of(torch.arange(LEVELS))))
        check_onnx(data)
        inputs = {"known": np.concatenate(known, 1).astype(np.float32), "level": levels.numpy()}
        inputs |= {"reach": reach.numpy()} if reaches else {}
        (out,) = OnnxRuntimeNetwork(data, "cpu", 1).run_all(inputs)
        parts = out.reshape(3, len(group), 3 if reaches else 2, 5, *grid)
        sixteenths = np.floor(parts[:, :, 0] * 2.0 ** (b - 1) + 0.5)
        if reaches:
            assert np.ptp(parts[:, :, 2]) > 20
            sixteenths += np.floor((parts[:, :, 2] * total[:, list(group)].numpy() + 64) / 128)
        index = (own + parts[:, :, 1]).clip(INDEX_MIN, N_SCALES)
        assert np.abs(parts[:, :, 0]).max() > 20
        assert np.ptp(parts[:, :, 1]) > 5
        mean = values[:, list(group)] - seen.residuals[number + 1]
        assert torch.allclose(mean, torch.from_numpy(sixteenths / 16).float(), atol=1e-4)
        assert np.array_equal(index, seen.index[number + 1].numpy())
        latents = 16 * seen.symbols[number + 1].numpy() + sixteenths
        assert np.array_equal(coded.values[:, list(group)].numpy() * 16, latents)
        again = context.quantise(
            values[:, list(group)] - torch.from_numpy(sixteenths / 16).float(), torch.tensor(index)
        )
        assert torch.equal(again, seen.symbols[number + 1])
        units = np.clip(np.floor(latents * 2.0**-b + 0.5), -127, 127)
        known.append(units.reshape(3, -1, *grid))
    assert all(symbols.any() for symbols in seen.symbols)
    assert torch.isfinite(coded.bits).all()


@DIMENSIONS
def test_splitting_is_undone_by_joining_and_is_what_networks_do(ndim: int) -> None:
    config = {2: FLAT, 3: DEEP}[ndim]
    model = VariableVAE(config)
    channels = config.arch.channels
    latents = torch.randn(2, channels, *(4, 6, 8)[-ndim:])
    places = model.split(latents)
    assert places.shape == (2, 2**ndim, channels, *(2, 3, 4)[-ndim:])
    assert torch.equal(model.join(places), latents)
    for i, place in enumerate(config.context.places):
        cut: Any = (slice(None), slice(None), *(slice(p, None, 2) for p in place))
        assert torch.equal(places[:, i], latents[cut])
    networks = CellPlaces(config)
    coding = [place for group in config.context.groups for place in group]
    assert torch.equal(networks.split(latents), places[:, coding].flatten(1, 2))
    assert torch.equal(networks.join(places[:, coding].flatten(1, 2)), latents)


def test_a_mean_is_moved_where_it_stands_alone() -> None:
    context = Context(ContextConfig(channels=1, hyper=1, width=4))
    values = torch.linspace(-3, 3, 241, requires_grad=True)
    mean = torch.full_like(values, 0.25).requires_grad_()
    for number, narrow in ((40.0, False), (1.0, True)):
        index = torch.full_like(values, number)
        residual = (values - mean).detach()
        symbols = context.quantise(residual, index)
        through = context.through(values, mean, symbols, index)
        assert torch.equal(through, mean + symbols)
        of_values, of_mean = torch.autograd.grad(through.sum(), [values, mean])
        assert torch.equal(of_mean, (symbols == 0).float())
        assert 0 < int(symbols.count_nonzero()) < len(values)
        beyond = residual.abs() > 1.2
        assert torch.equal(of_values[beyond], torch.ones_like(values[beyond]))
        still = of_values[residual.abs() < 0.4]
        assert torch.equal(still, torch.full_like(still, 0.0 if narrow else 1.0))
        # on the average of where a latent may lie, the gradient is one
        assert float(of_values[20:-1].mean()) == pytest.approx(1, abs=0.1)


def test_the_price_of_a_threshold_is_spread_around_it() -> None:
    context = Context(ContextConfig(channels=1, hyper=1, width=4))
    size = torch.linspace(0, 1.4, 2001)
    for number in (1.0, 4.0):
        index = torch.full_like(size, number)
        residual = size.clone().requires_grad_()
        symbols = context.quantise(residual, index)
        bits = context.bits(residual, symbols, index, hard=False)
        assert torch.equal(bits.detach(), context.bits(residual, symbols, index, hard=True).detach())
        (slope,) = torch.autograd.grad(bits.sum(), [residual])
        paid = float((slope * (size <= 1)).sum() * (size[1] - size[0]))
        jump = laplace_bits(torch.ones(1), laplace_scale(index[:1])) - laplace_bits(
            torch.zeros(1), laplace_scale(index[:1])
        )
        # the window is cut at one step, where the threshold lies within 0.2 of it
        assert 0.5 * float(jump) < paid < 1.02 * float(jump)


def test_bits_and_their_gradients_stay_finite() -> None:
    size = torch.cat([torch.zeros(1), torch.tensor([0.25, 0.499, 0.5, 0.501, 1.0]), torch.logspace(0, 4, 17)])
    values = torch.cat([-size, size]).repeat(13, 1).requires_grad_()
    scale = torch.logspace(-3, 3, 13)[:, None].repeat(1, values.shape[1]).requires_grad_()
    bits = laplace_bits(values, scale)
    assert torch.isfinite(bits).all()
    assert (bits >= 0).all()
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(bits.sum(), [values, scale]))
    # all cells together are certain
    cells = torch.arange(-40.0, 41)[:, None]
    for width in (0.05, 0.4, 3.0):
        assert torch.exp2(-laplace_bits(cells, torch.tensor([width]))).sum() == pytest.approx(1, abs=1e-4)


@DIMENSIONS
def test_weights_that_float32_might_round_are_refused(ndim: int) -> None:
    net = GroupNet(ContextConfig(ndim=ndim, channels=2, hyper=2, width=128 if ndim == 2 else 48), 2, 1)
    powers = powers_of(torch.arange(LEVELS))
    group_onnx(integer_group(net, powers))
    with torch.no_grad():
        net.window.fill_(1.0)
    with pytest.raises(ModelError, match=r"'window'.*limit"):
        group_onnx(integer_group(net, powers))


def advance(trainer: VariableTrainer, n: int) -> list[float]:
    trainer._set_rate(0.0)
    return [trainer._advance(0.0)["loss"] for _ in range(n)]


@pytest.mark.parametrize("orthogonal", [0.0, 1.5])
@DIMENSIONS
def test_ten_steps_lower_the_loss_and_a_run_resumes_bit_by_bit(
    ndim: int, orthogonal: float, source: Source, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIGS[ndim], orthogonal=orthogonal)
    trainer = VariableTrainer(config, [source], tmp_path / "a.pt")
    batch = trainer.sampler.batch(config.batch)
    levels = torch.from_numpy(trainer.levels[[3, len(trainer.levels) // 2, -3]])

    def cost() -> float:
        with torch.inference_mode():
            bits, error = trainer.forward(batch, levels, hard=True)
            return float(rate_distortion(bits, error, trainer.model.steps(levels))[0])

    before = cost()
    trainer._set_rate(0.0)
    for _ in range(10):
        bits, error = trainer.forward(batch, levels)
        loss = rate_distortion(bits, error, trainer.model.steps(levels))[0]
        trainer.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        trainer.optimiser.step()
    assert cost() < before - 0.01
    assert np.isfinite(advance(trainer, 2)).all()
    trainer.save()
    again = VariableTrainer(dataclasses.replace(config, seed=5), [source], tmp_path / "a.pt")
    assert again.step == trainer.step == 2
    for a, b in zip(trainer.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for key, state in trainer.optimiser.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(value, again.optimiser.state_dict()["state"][key][name])
    loaded, _, steps = load_variable(tmp_path / "a.pt")
    assert steps == 2
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.model.parameters(), strict=True))


def test_crops_of_several_shapes_take_turns(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = CONFIGS[3].crop
    deep = (3 * first[0], first[1] // 2, first[2])
    config = dataclasses.replace(CONFIGS[3], more_crops=(deep,))
    assert VariableTrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    trainer = VariableTrainer(config, [source], tmp_path / "e.pt")
    seen: list[tuple[int, ...]] = []
    forward = trainer.forward

    def watched(grey: Tensor, *rest: Any) -> Any:
        seen.append(tuple(grey.shape))
        return forward(grey, *rest)

    monkeypatch.setattr(trainer, "forward", watched)
    advance(trainer, 4)
    assert seen == [(config.batch, 1, *first), (round(config.batch / 1.5), 1, *deep)] * 2


@DIMENSIONS
def test_a_checkpoint_becomes_a_model(ndim: int, source: Source, tmp_path: Path) -> None:
    trainer = VariableTrainer(CONFIGS[ndim], [source], tmp_path / "b.pt")
    advance(trainer, 2)
    trainer.save()
    folder = tmp_path / "models"
    card = export_variable.export(
        tmp_path / "b.pt", folder / "tiny", name="tiny", version=1, ratio_range=(8, 128), sources=[source]
    )
    assert card["decoder"]["context"]["hyper"] == {2: 3, 3: 2}[ndim]
    check_model(trainer, folder, card, fibsem()[:9, :75, :90])


def check_model(trainer: VariableTrainer, folder: Path, card: dict[str, Any], chunk: Array) -> None:
    """What was exported as "tiny" compresses as asked, reads in part as in whole, and can be trained on."""
    assert card["measured"]["held_out"][0]["psnr_db"] > 15
    with options(model_path=(folder,)):
        assert find_model("tiny").card.context is not None
        reached = {}
        for ratio in (16, 64):
            codec = VAECodec(ratio=ratio, model="tiny")
            frame = codec.encode(chunk)
            back = codec.decode(frame)
            assert len(frame) <= chunk.nbytes / ratio
            assert np.array_equal(decode_sections(frame, 4, 6), back[4:6])
            reached[ratio] = psnr(chunk, back)
        assert reached[16] > reached[64] + 0.5 > 15
        with options(backend="torch"):
            assert np.abs(codec.decode(frame).astype(int) - back).max() <= 1
        check_start(trainer, find_model("tiny"))


def check_start(trainer: VariableTrainer, model: Model) -> None:
    """What is read back from the directory is the network that was exported, to the precision of what is stored."""
    again, config = variable_from_directory(model)
    assert config == trainer.config
    stored = trainer.model.state_dict()
    levels = torch.from_numpy(trainer.levels)
    powers = torch.cat([torch.ones(len(levels), 1), powers_of(levels)], 1)
    for name, value in again.state_dict().items():
        if name.endswith("base"):  # the ladder's scales were rounded, fitted to tissue, and fitted once more
            assert float((powers @ (value - stored[name])).abs().max()) <= 3, name
            continue
        wanted = stored[name]
        assert value.shape == wanted.shape
        if not value.numel():  # of sections that know nothing of each other
            continue
        bound = 1e-3 * float(wanted.abs().max()) + 1e-4
        if name == "log_step":  # steps are stored to 11 bits, and a polynomial is fitted to their logs
            bound += 2.0**-11
        if name.startswith("context."):
            bound = 2.0**-9 + 1e-3  # weights are 256ths, at most 127 of them
            if name in ("context.reach", "context.hyper_reach"):  # whole numbers of tables
                bound = 0.5
            if not any(word in name for word in ("bias", "level", "reach")):
                wanted = wanted.clamp(-127 / 256, 127 / 256)
        assert float((value - wanted).abs().max()) <= bound, name


@DIMENSIONS
def test_transforms_go_on_from_a_token_model(ndim: int, source: Source, tmp_path: Path) -> None:
    config = CONFIGS[ndim]
    start = VQVAE(VQConfig(config.model.arch))
    trainer = VariableTrainer(config, [source], tmp_path / "c.pt", start=start)
    given = start.state_dict()
    for name, value in trainer.model.state_dict().items():
        if name.startswith(("analysis.", "synthesis.")):
            assert torch.equal(value, given[name])
    assert float(trainer.model.variance.min()) > 0  # measured on the volume's crops
    assert float(trainer.model.variance.max()) != 1
    assert np.isfinite(advance(trainer, 1)).all()
