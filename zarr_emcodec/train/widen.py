"""More latents for a trained network: what its linear path leaves over becomes the start of further channels.

A network trained at few bits keeps the components that pay there, and cannot reach high quality however fine its steps.
The trained transforms stay as they are; added rows and columns hold the block KLT of the residual of the old linear
path, so the widened network starts where the old one ended and has the rest of the space to go to.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zarr_emcodec.train.arch.vae2d import PATCH, ArchConfig, Synthesis
from zarr_emcodec.train.arch.vae3d import Arch3dConfig, Synthesis3d
from zarr_emcodec.train.arch.variable import VariableVAE


@torch.no_grad()
def linear_blocks(synthesis: Synthesis | Synthesis3d) -> NDArray[np.float64]:
    """What each latent puts into a block through the linear path, shape (C, voxels of a block), row-major."""
    weight = synthesis.linear.weight
    if isinstance(synthesis, Synthesis):
        one = torch.eye(synthesis.config.channels)[:, :, None, None]
        patches = F.pixel_shuffle(F.conv2d(one, weight), synthesis.config.stride // PATCH)
        blocks = F.pixel_shuffle(patches, PATCH)
    else:
        one = torch.eye(synthesis.config.channels)[:, :, None, None, None]
        blocks = synthesis.fold(synthesis.linear(one))
    return np.asarray(blocks.flatten(1).double())


def residual_basis(
    used: NDArray[np.float64], basis: NDArray[np.float64], deviations: NDArray[np.float64], further: int
) -> NDArray[np.float64]:
    """Principal axes of what a set of blocks cannot express.

    Parameters
    ----------
    used : ndarray, shape (C, n)
        Blocks that are there, not necessarily orthonormal.
    basis, deviations : ndarray, shapes (n, n) and (n,)
        The whole block KLT of the source: orthonormal rows and their standard deviations.
    further : int
        Axes wanted; at most ``n - C``.

    Returns
    -------
    ndarray, shape (further, n)
        Orthonormal rows, orthogonal to `used`, largest variance first.
    """
    span, _ = np.linalg.qr(used.T)
    outside = basis - (basis @ span) @ span.T
    second = (outside * deviations[:, None] ** 2).T @ outside
    values, vectors = np.linalg.eigh(second)
    return np.asarray(vectors[:, np.argsort(values)[::-1][:further]].T)


def other_ladder(old: tuple[float, float], new: tuple[float, float]) -> Tensor:
    """How coefficients of a cubic of the coarseness change with the ladder that coarseness is measured on.

    Parameters
    ----------
    old, new : (float, float)
        First and last step of the ladders; a step's coarseness is its place on the log scale, -1 to 1.

    Returns
    -------
    Tensor, shape (4, 4)
        Takes ``(1, c, c**2, c**3)`` of the new coarseness to that of the old one.
    """
    low, high = (math.log(v) for v in old)
    first, last = (math.log(v) for v in new)
    slope = (last - first) / (high - low)
    shift = (first + last - low - high) / (high - low)
    rows = [[math.comb(n, k) * slope**k * shift ** (n - k) if k <= n else 0.0 for k in range(4)] for n in range(4)]
    return torch.tensor(rows)


@torch.no_grad()
def take_over(
    model: VariableVAE,
    start: dict[str, Tensor],
    arch: ArchConfig | Arch3dConfig,
    klt: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
) -> None:
    """Go on from trained transforms; the entropy model is fitted anew.

    Parameters
    ----------
    model : VariableVAE
        Of the wanted shape.
    start : dict of str to Tensor
        State of the trained network; its stages have the widths of the model's. Residual blocks that it lacks become
        the identity.
    arch : ArchConfig or Arch3dConfig
        Its shape; it may have fewer latents than the model.
    klt : tuple of ndarray, shapes (n, n) and (n,), optional
        The whole block KLT of the training volumes, axes and standard deviations; needed for further latents.
    """
    own, channels = model.state_dict(), arch.channels
    for name, value in own.items():
        if not name.startswith(("analysis.", "synthesis.")) or ".linear." in name:
            continue
        if name not in start:
            if ".point." in name:
                value.zero_()
            continue
        given = start[name]
        if given.shape != value.shape:  # latents are the outputs of a head and the inputs of the first stage
            value.zero_()
        value[tuple(slice(n) for n in given.shape)] = given
    if klt is not None:
        trained = _blocks_of(start["synthesis.linear.weight"], model)
        further = residual_basis(trained, *klt, model.config.arch.channels - channels)
        model.start_from_klt(np.concatenate([trained, further]), np.ones(model.config.arch.channels))
    for side, axis in (("analysis", 0), ("synthesis", _latent_axis(model))):
        weight = own[f"{side}.linear.weight"]
        weight.narrow(axis, 0, channels).copy_(start[f"{side}.linear.weight"])
    powers = other_ladder((arch.step_min, arch.step_max), (model.config.arch.step_min, model.config.arch.step_max))
    cubic = torch.cat([start["synthesis.film.bias"][:, None], start["synthesis.film.weight"]], 1) @ powers
    own["synthesis.film.bias"].copy_(cubic[:, 0])
    own["synthesis.film.weight"].copy_(cubic[:, 1:])
    if "log_step" in start:  # constant, or a quadratic of the coarseness
        log_step = start["log_step"].reshape(-1, channels)
        own["log_step"][:, :channels] = powers[: len(log_step), :3].T @ log_step


def _latent_axis(model: VariableVAE) -> int:
    # a transposed convolution has its inputs first
    return 0 if isinstance(model.synthesis, Synthesis3d) else 1


def _blocks_of(weight: Tensor, model: VariableVAE) -> NDArray[np.float64]:
    axis = _latent_axis(model)
    linear = model.synthesis.linear.weight
    linear.zero_()
    linear.narrow(axis, 0, weight.shape[axis]).copy_(weight)
    return linear_blocks(model.synthesis)[: weight.shape[axis]]
