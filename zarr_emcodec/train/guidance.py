"""``python -m zarr_emcodec.train.guidance --data FOLDER --checkpoint FILE``: what may guide a fit beside squared error.

Patches of fitted fields and of the chunk in, losses out (INIF: Dai et al. 2024): how differently a frozen network sees
membranes in them, or how far the latents of a shipped variational model lie apart. The membrane network is small and
learns from dark ridges of the training volumes; no drawn labels, and no network of others, is used.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zarr_emcodec.fitting import siren
from zarr_emcodec.runtime import find_model
from zarr_emcodec.train.data import Source, StandardSampler
from zarr_emcodec.train.field_tasks import FieldTask
from zarr_emcodec.train.losses import ridge_response
from zarr_emcodec.train.recipes import standard_sources
from zarr_emcodec.train.start import model_from_directory

PATCH = 48  # voxels: of a plane, rendered whole at each step
MEMBRANE_SHARE = 0.2  # of an image; 0.21 of the voxels are membrane where they have been drawn in public volumes
_SIGMAS = (1.5, 2.5)  # voxels: half widths of membranes at 4 to 10 nm
_STANDARD = 32.0, 128.0  # contrast and mean of `StandardSampler`
_CROP, _BATCH, _RATE = 64, 4, 4e-3

Guide = Callable[[Sequence[Tensor]], Tensor]
"""A loss of effective weights; an `extra` of `field_tasks.fit_task`."""
View = Callable[[Tensor], Tensor]
"""What a frozen network makes of standardised images (N, 1, y, x)."""


class MembraneNet(nn.Module):
    """Standardised sections (N, 1, y, x), even edges, to logits of membrane, same shape; sees 16 voxels."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 4, stride=2, padding=1), nn.SiLU(),  # at half resolution: a membrane has 3 voxels
            nn.Conv2d(channels, channels, 3, padding=1), nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.SiLU(),
            nn.Conv2d(channels, 4, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images."""
        logits: Tensor = self.layers(image)
        return logits


def ridges(image: Tensor) -> Tensor:
    """How much of a dark line passes at the better of two widths, (N, 1, y, x)."""
    return torch.stack([ridge_response(image, sigma) for sigma in _SIGMAS]).amax(0)


def pseudo_labels(image: Tensor) -> Tensor:
    """Membranes, as far as dark ridges are: the strongest fifth of each image, bool."""
    response = ridges(image)
    limit = torch.quantile(response.flatten(1), 1 - MEMBRANE_SHARE, 1)
    return response > limit[:, None, None, None]


def train_membranes(sources: Sequence[Source], steps: int, seed: int = 0) -> MembraneNet:
    """Fit the network to pseudo-labels of augmented crops; it sees noise and contrast that they were not made from."""
    torch.manual_seed(seed)
    sampler = StandardSampler(sources, (_CROP, _CROP), seed)
    network = MembraneNet()
    optimiser = torch.optim.Adam(network.parameters(), lr=_RATE)
    for step in range(steps):
        contrast, mean = _STANDARD
        image = (sampler.batch(_BATCH) - mean) / contrast
        labels = pseudo_labels(image).float()
        noisy = image + 0.2 * torch.randn_like(image)
        loss = F.binary_cross_entropy_with_logits(network(noisy), labels)
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (1 + math.cos(math.pi * step / steps)) / 2
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 50 == 0 or step == steps - 1:
            print(json.dumps({"step": step, "loss": round(loss.item(), 4)}), flush=True)
    return network


def membrane_view(network: MembraneNet) -> View:
    """Probabilities of membrane."""
    network.requires_grad_(False).eval()
    return lambda image: torch.sigmoid(network(image))


def feature_view(model: str = "vae-2d-s16") -> View:
    """Latents of a shipped variational model, in deviations of each channel, square root of channels taken out."""
    network = model_from_directory(find_model(model)).requires_grad_(False).eval()
    scale = torch.exp(network.log_scale)[None, :, None, None]
    contrast, mean = _STANDARD

    def view(image: Tensor) -> Tensor:
        latents: Tensor = network.analysis(image * contrast + mean) / scale
        return latents

    return view


def guide(task: FieldTask, view: View, weight: float, seed: int, *, patch: int = PATCH) -> Guide:
    """The loss of a random patch of a random plane at each step: mean absolute difference of what the view gives.

    Parameters
    ----------
    task : FieldTask
        Of one crop; its last two axes are those of planes.
    view : callable
    weight : float
        Of the loss, beside the squared error in squared standard deviations.
    seed : int
    patch : int, voxels
        Edge; less where the plane is smaller.
    """
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.from_numpy(axis) for axis in task.coords]
    image = torch.from_numpy(task.images[0])
    sizes = [1] * (image.ndim - 2) + [min(patch, n) for n in image.shape[-2:]]

    def loss(weights: Sequence[Tensor]) -> Tensor:
        starts = [
            int(torch.randint(n - k + 1, (1,), generator=generator)) for k, n in zip(sizes, image.shape, strict=True)
        ]
        box = tuple(slice(a, a + k) for a, k in zip(starts, sizes, strict=True))
        coords = torch.stack(torch.meshgrid(*[axis[b] for axis, b in zip(axes, box, strict=True)], indexing="ij"), -1)
        rendered = siren.forward(weights, coords.reshape(-1, image.ndim)).reshape(1, 1, *sizes[-2:])
        wanted = view(image[box].reshape(1, 1, *sizes[-2:]))
        return weight * (view(rendered) - wanted).abs().mean()

    return loss


def load_membranes(checkpoint: Path) -> MembraneNet:
    """The network of a checkpoint."""
    network = MembraneNet()
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    return network


def main() -> None:
    """Parse and train the membrane network."""
    parser = argparse.ArgumentParser(prog="python -m zarr_emcodec.train.guidance", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the volumes of the shipped models")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.save(train_membranes(standard_sources(args.data), args.steps).state_dict(), args.checkpoint)


if __name__ == "__main__":
    main()
