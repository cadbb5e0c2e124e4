"""A widened network does with its old latents what the old one did, and its new ones hold what was left over."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra 'train'")

import torch

from zarr_emcodec.train.arch.vae2d import ArchConfig
from zarr_emcodec.train.arch.vae3d import Arch3dConfig
from zarr_emcodec.train.arch.variable import VariableConfig, VariableVAE
from zarr_emcodec.train.widen import linear_blocks, other_ladder, residual_basis, take_over

pytestmark = pytest.mark.extra

FLAT = ArchConfig(stride=16, channels=5, enc_widths=(8, 8), enc_blocks=(1, 1), dec_widths=(8, 8), dec_blocks=(1, 1))
DEEP = Arch3dConfig(
    strides=((2, 4, 4), (1, 2, 2)),
    channels=5,
    enc_widths=(8, 8),
    enc_blocks=(0, 1),
    dec_widths=(8, 8),
    dec_blocks=(1, 1),
)
ARCHES = pytest.mark.parametrize("arch", [FLAT, DEEP], ids=["2d", "3d"])


def lively(config: VariableConfig) -> VariableVAE:
    """A network whose every weight says something."""
    torch.manual_seed(4)
    model = VariableVAE(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.startswith(("analysis.", "synthesis.")) and "fold" not in name:
                value.copy_(torch.randn_like(value) * 0.1)
        model.log_step.copy_(torch.randn_like(model.log_step) * 0.3)
    return model


def widened(old: VariableVAE) -> tuple[VariableVAE, np.ndarray, np.ndarray]:
    arch = old.config.arch
    more = dataclasses.replace(arch, channels=12, step_min=2.0, step_max=900.0)  # another ladder as well
    model = VariableVAE(dataclasses.replace(old.config, arch=more))
    voxels = int(np.prod(old.config.stride))
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.standard_normal((voxels, voxels)))[0].T
    deviations = np.geomspace(100, 0.1, voxels)
    take_over(model, old.state_dict(), arch, (basis, deviations))
    return model, basis, deviations


@ARCHES
@torch.inference_mode()
def test_old_latents_are_what_they_were(arch: ArchConfig | Arch3dConfig) -> None:
    old = lively(VariableConfig(arch, hyper=2, hyper_width=8, context_width=8))
    model, _, _ = widened(old)
    grey = 128 + 30 * torch.randn(2, 1, *(2 * n for n in old.config.cell))
    before = old.analysis(grey)
    after = model.analysis(grey)
    assert torch.allclose(after[:, :5], before, atol=1e-3)
    step = torch.tensor([20.0, 200.0])
    level = {m: torch.argmin((m.steps(torch.arange(256))[:, None] - step).abs(), 0) for m in (old, model)}
    squash = torch.rand(2, 12)
    after[:, 5:] = 0
    coarse = {m: m.coarseness(level[m]) for m in (old, model)}
    grey_before = old.synthesis(before, squash[:, :5], coarse[old])
    grey_after = model.synthesis(after, squash, coarse[model])
    assert float((grey_after - grey_before).abs().max()) < 0.02 * float(grey_before.std())  # levels are 3 % apart
    assert torch.allclose(model.gains(level[model])[:, :5], old.gains(level[old]), rtol=0.05)


@ARCHES
@torch.inference_mode()
def test_new_latents_hold_what_was_left_over(arch: ArchConfig | Arch3dConfig) -> None:
    old = lively(VariableConfig(arch, hyper=2, hyper_width=8, context_width=8))
    model, basis, deviations = widened(old)
    blocks = linear_blocks(model.synthesis)
    assert np.allclose(blocks[:5], linear_blocks(old.synthesis), atol=1e-6)
    assert np.allclose(blocks[5:] @ blocks[:5].T, 0, atol=1e-4)
    assert np.allclose(blocks[5:] @ blocks[5:].T, np.eye(7), atol=1e-4)
    # of all sets of seven directions beside the old ones, none catches more of the source
    covariance = (basis * deviations[:, None] ** 2).T @ basis
    caught = np.trace(blocks[5:] @ covariance @ blocks[5:].T)
    span = np.linalg.qr(blocks[:5].T)[0]
    outside = np.eye(len(span)) - span @ span.T
    best = np.sort(np.linalg.eigvalsh(outside @ covariance @ outside))[-7:].sum()
    assert caught == pytest.approx(best, rel=1e-4)
    linear = model.analysis.linear.weight.flatten(1).double().numpy()
    assert np.allclose(linear[5:] @ linear[5:].T, np.eye(7), atol=1e-4)


def test_residual_of_nothing_is_the_transform_itself() -> None:
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    found = residual_basis(basis[:2], basis, np.array([9.0, 8, 7, 6, 5, 4]), 2)
    assert np.allclose(np.abs(found @ basis[2:4].T), np.eye(2))


def test_polynomials_on_another_ladder() -> None:
    old, new = (4.0, 640.0), (2.5, 1200.0)
    cubic = torch.tensor([0.3, -0.2, 0.5, 0.1])
    for step in (5.0, 60.0, 600.0):
        at = [2 * np.log(step / low) / np.log(high / low) - 1 for low, high in (old, new)]
        wanted, found = (
            float((c * torch.tensor([1, x, x**2, x**3])).sum())
            for c, x in zip((cubic, cubic @ other_ladder(old, new)), at, strict=True)
        )
        assert found == pytest.approx(wanted, abs=1e-5)
