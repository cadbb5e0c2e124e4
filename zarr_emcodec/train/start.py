"""A shipped model as the start of a training: its weights back from ONNX into the network.

A model directory in, a network out. Weights come back as they were stored: in float16 precision, those of entropy
models as whole numbers. What only training knows (an optimiser's state, how often codes were chosen) begins anew.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from zarr_emcodec.errors import MissingExtraError, ModelError
from zarr_emcodec.runtime import Model
from zarr_emcodec.train.arch.context import GroupNet
from zarr_emcodec.train.arch.vae2d import ArchConfig, VAE2d
from zarr_emcodec.train.arch.variable import LEVELS, VariableVAE
from zarr_emcodec.train.arch.vqvae import VQVAE, Quantiser, Refinement, TwoLevel
from zarr_emcodec.train.arch.whole import UNIT_SHIFT, WEIGHT_SHIFT
from zarr_emcodec.train.context_graph import out_halves
from zarr_emcodec.train.variable import VariableTrainConfig, known_levels
from zarr_emcodec.train.vq import VQTrainConfig, build
from zarr_emcodec.train.whole_graph import HALF


def model_from_directory(model: Model) -> VAE2d:
    """Rebuild the network of a model directory, ready to be trained on.

    Parameters
    ----------
    model : Model
        With its encoder; one that `export` wrote.

    Returns
    -------
    VAE2d

    Raises
    ------
    ModelError
        If the card does not describe a network of this family, or the weights are not those of it.
    """
    try:
        network = VAE2d(ArchConfig.from_dict(dict(model.card.training["config"]["arch"])))
    except (KeyError, TypeError) as error:
        raise ModelError(f"model '{model.card.id}': its card does not say which network to build.") from error
    weights = _stored(model, "encoder.onnx") | _stored(model, "decoder.onnx")
    try:
        state = {name: weights.get(name) for name in network.state_dict()}
        state["log_step"] = torch.log(weights["gain"][0])
        state["log_scale"] = torch.log(weights["variance"][0]) / 2 - math.log(2) / 2
        network.load_state_dict(state)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise ModelError(f"model '{model.card.id}': its networks are not those that its card describes.") from error
    return network


@torch.no_grad()
def variable_from_directory(model: Model) -> tuple[VariableVAE, VariableTrainConfig]:
    """Rebuild a variable-rate network with its entropy model, ready to be trained on.

    Parameters
    ----------
    model : Model
        With its encoder; one that `export_variable` wrote.

    Returns
    -------
    network : VariableVAE
    config : VariableTrainConfig
        That it was trained with.

    Raises
    ------
    ModelError
        If the card does not describe a network of this family, or the weights are not those of it.
    """
    try:
        config = VariableTrainConfig.from_dict(dict(model.card.training["config"]))
        network = VariableVAE(config.model)
    except (KeyError, TypeError) as error:
        raise ModelError(f"model '{model.card.id}': its card does not say which network to build.") from error
    weights = {name.removeprefix("tell."): value for name, value in _stored(model, "encoder.onnx").items()}
    weights |= _stored(model, "decoder.onnx")
    if config.model.reaches:
        weights |= _stored(model, "hyper.onnx")
    try:
        for name, value in network.state_dict().items():
            if name.startswith(("analysis.", "synthesis.", "hyper.")) and value.numel():
                value.copy_(weights[name].reshape(value.shape))
        network.variance.copy_(weights["variance"][0])
        _read_ladder(network, config, model)
        powers = torch.cat([torch.ones(LEVELS, 1), network.powers(known_levels(config))], 1)
        for i, net in enumerate(network.context.nets):
            assert isinstance(net, GroupNet)
            _read_group(net, _stored(model, f"context-{i}.onnx"), powers)
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"model '{model.card.id}': its networks are not those that its card describes.") from error
    return network, config


@torch.no_grad()
def tokens_from_directory(model: Model) -> tuple[VQVAE | TwoLevel, VQTrainConfig]:
    """Rebuild a vector-quantised network, ready to be trained on.

    Parameters
    ----------
    model : Model
        With its encoder; one that `export_vq` wrote.

    Returns
    -------
    network : VQVAE or TwoLevel
        Its codes count as chosen equally often.
    config : VQTrainConfig
        That it was trained with.

    Raises
    ------
    ModelError
        If the card does not describe a network of this family, or the weights are not those of it.
    """
    try:
        config = VQTrainConfig.from_dict(dict(model.card.training["config"]))
        network = build(config)
    except (KeyError, TypeError) as error:
        raise ModelError(f"model '{model.card.id}': its card does not say which network to build.") from error
    try:
        top = network.top if isinstance(network, TwoLevel) else network
        weights = _stored(model, "encoder.onnx") | _stored(model, "decoder.onnx")
        _read_level(top, weights, "model.top." if isinstance(network, TwoLevel) else "model.")
        scale, shift = _constant(weights, "Mul").flatten() - 1, _constant(weights, "Add").flatten()
        top.synthesis.film.weight.zero_()  # one rate: the level is told nothing
        top.synthesis.film.bias.copy_(torch.cat([scale, shift]))
        if isinstance(network, TwoLevel):
            weights = _stored(model, "encoder-bottom.onnx") | _stored(model, "decoder-bottom.onnx")
            _read_level(network.bottom, weights, "refinement.")
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"model '{model.card.id}': its networks are not those that its card describes.") from error
    return network, config


def _read_level(network: VQVAE | Refinement, weights: dict[str, torch.Tensor], prefix: str) -> None:
    """Encoder, decoder but for its modulation, and codebooks of one level."""
    known = {name.removeprefix(prefix): value for name, value in weights.items()}
    for name, value in network.named_parameters():
        if not name.startswith("synthesis.film."):
            value.copy_(known[name].reshape(value.shape))
    network.spread.copy_(_constant(weights, "Div").flatten())
    _read_codes(network.quantiser, known)


def _read_codes(quantiser: Quantiser, weights: dict[str, torch.Tensor]) -> None:
    books = [weights[f"look_up.books.{g}"] for g in range(len(quantiser.group))]
    # channels group by group; a single group has them in order
    channels = torch.argsort(weights["look_up.back"]) if len(books) > 1 else torch.arange(books[0].shape[1])
    for tensor in (quantiser.group, quantiser.codebook):
        tensor.zero_()
    for g, own in enumerate(torch.split(channels, [book.shape[1] for book in books])):
        quantiser.group[g, own] = 1
        quantiser.codebook[g][:, own] = books[g]
    quantiser.count.fill_(1)
    quantiser.total.copy_(quantiser.codebook)


def _constant(weights: dict[str, torch.Tensor], operator: str) -> torch.Tensor:
    """The one tensor that the export computed beforehand for an operator."""
    (found,) = (value for name, value in weights.items() if name.startswith(f"onnx::{operator}_"))
    return found


def _read_ladder(network: VariableVAE, config: VariableTrainConfig, model: Model) -> None:
    """Polynomials over the levels, from what they came to at each."""
    tables = {name: torch.from_numpy(np.array(model.tables()[name], np.float32)) for name in _LADDER}
    levels, known = torch.arange(LEVELS), known_levels(config)
    coarse = network.coarseness(levels)
    ratio = torch.log(tables["gain"] / network.steps(levels)[:, None])
    network.log_step.copy_(_fitted(torch.stack([coarse**0, coarse, coarse**2], 1), ratio))
    powers = torch.cat([torch.ones(LEVELS, 1), network.powers(known)], 1)
    network.log_hyper.copy_(_fitted(powers, torch.log(tables["hyper_gain"])))
    inside = levels == known
    hyper = config.model.hyper
    network.context.hyper_base.copy_(_fitted(powers[inside], tables["scale"][inside, :hyper]))
    network.context.base.copy_(_fitted(powers[inside], tables["scale"][inside, hyper:]))
    if config.model.reaches:
        reach = torch.from_numpy(np.array(model.tables()["reach"], np.float32))
        network.context.hyper_reach.copy_(reach[:, :hyper])
        network.context.reach.copy_(reach[:, hyper:])
        network.log_reach.copy_(torch.log(torch.from_numpy(np.array(model.tables()["reach_gain"]))))


_LADDER = ("gain", "hyper_gain", "scale")


def _read_group(net: GroupNet, weights: dict[str, torch.Tensor], powers: torch.Tensor) -> None:
    unit, total = 2.0**-WEIGHT_SHIFT, 2.0 ** -(WEIGHT_SHIFT + UNIT_SHIFT)
    width = len(net.embed)
    net.embed.copy_(weights["embed"].reshape(net.embed.shape) * unit)
    net.embed_bias.copy_((weights["embed.bias"] - HALF) * total)
    kernel = net.window.shape[2:]
    net.window.copy_(weights["window"].reshape(width, *kernel, width).movedim(-1, 1) * unit)
    bias = _fitted(powers, (weights["levels"].reshape(LEVELS, width) - HALF) * total)
    net.window_bias.copy_(bias[0])
    net.level.copy_(bias[1:].T)
    for i, (weight, offset) in enumerate(zip(net.hidden, net.hidden_bias, strict=True)):
        weight.copy_(weights[f"hidden.{i}"].reshape(width, width) * unit)
        offset.copy_((weights[f"hidden.{i}.bias"] - HALF) * total)
    if net.outputs > 2:
        net.reach.copy_(weights["reaches"].reshape(-1, width).T * 2.0**-UNIT_SHIFT)
    parts = range(net.outputs * net.places)
    net.out.copy_(torch.cat([weights[f"out.{i}"].reshape(-1, width) for i in parts]) * unit)
    net.out_bias.copy_(torch.cat([weights[f"out.{i}.bias"] - out_halves()[i % net.outputs] for i in parts]) * total)


def _fitted(powers: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Coefficients of polynomials with these values, least squares."""
    found: torch.Tensor = torch.linalg.lstsq(powers.double(), values.double()).solution.float()
    return found


def _stored(model: Model, file: str) -> dict[str, torch.Tensor]:
    """Weights of a network by name, float32."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtraError("starting from a shipped model", extra="train") from error
    found = {}
    for tensor in onnx.load_from_string(model.file(file)).graph.initializer:
        values = np.array(numpy_helper.to_array(tensor), dtype=np.float32)
        found[tensor.name.removesuffix(".half")] = torch.from_numpy(values)
    for name in [name for name in found if name.endswith(".byte")]:
        whole = name.removesuffix(".byte")
        found[whole] = found.pop(name) * found.pop(f"{whole}.scale")
    return found
