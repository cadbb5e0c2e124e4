"""Orthogonal steps of convolutions, and Adam's of everything else."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from zarr_emcodec.train.muon import Muon, as_matrix, as_weight, convolutions, orthogonal  # noqa: E402

pytestmark = pytest.mark.extra


@pytest.mark.parametrize("shape", [(20, 90), (90, 20), (32, 32)])
def test_all_directions_of_a_step_are_about_as_long(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u * torch.logspace(0, -2, len(s)) @ v  # a hundredfold between the first and the last
    found = orthogonal(matrix)
    assert found.shape == shape
    lengths = torch.linalg.svdvals(found)
    assert lengths.min() > 0.5
    assert lengths.max() < 1.3
    kept = (u.T @ found @ v.T).diagonal()  # in the directions that the matrix has
    assert torch.allclose(kept, lengths.sort(descending=True)[0][torch.argsort(torch.argsort(-kept))], atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Conv2d(3, 5, 3), (5, 27)), (nn.ConvTranspose3d(3, 5, (1, 2, 2)), (5, 12))]
)
def test_weights_are_matrices_by_output_and_back(layer: nn.Conv2d, shape: tuple[int, int]) -> None:
    weight = layer.weight.detach()
    matrix = as_matrix(layer, weight)
    assert matrix.shape == shape
    assert torch.equal(as_weight(layer, matrix, weight), weight)


def test_large_convolutions_take_orthogonal_steps_and_the_rest_adams() -> None:
    torch.manual_seed(0)
    wide, up, small, fixed = (
        nn.Conv2d(16, 24, 3),
        nn.ConvTranspose2d(24, 16, 2, 2),
        nn.Conv2d(16, 4, 1),
        nn.Conv2d(16, 16, 1),
    )
    model = nn.ModuleList([wide, up, small, fixed, nn.Linear(20, 20)])
    chosen = convolutions(model, without=[fixed.weight])
    assert {id(weight) for weight in chosen} == {id(wide.weight), id(up.weight)}
    plain = [p for p in model.parameters() if not any(p is weight for weight in chosen)]
    before = {id(p): p.detach().clone() for p in model.parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimiser = Muon([{"params": list(model.parameters())}], chosen, 2.0)
    optimiser.param_groups[0]["lr"] = 0.01
    optimiser.step()
    for weight in chosen:
        moved = weight.detach() - before[id(weight)]
        assert moved.square().mean().sqrt() == pytest.approx(0.2 * 2.0 * 0.01, rel=0.3)
        assert weight.grad is not None
        assert (moved * weight.grad).sum() < 0
    reference = [before[id(p)].clone().requires_grad_() for p in plain]
    for copy, own in zip(reference, plain, strict=True):
        copy.grad = own.grad
    torch.optim.Adam(reference, lr=0.01, betas=(0.9, 0.98)).step()
    for copy, own in zip(reference, plain, strict=True):
        assert torch.allclose(copy, own, atol=1e-6)
