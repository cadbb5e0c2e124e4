"""A shipped model as the start of a training: its weights back from ONNX into the network.

A model directory in, a `VAE2d` out. Weights come back as they were stored, in float16 precision.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from zarr_emcodec.errors import MissingExtraError, ModelError
from zarr_emcodec.runtime import Model
from zarr_emcodec.train.arch.vae2d import ArchConfig, VAE2d


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
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtraError("starting from a shipped model", extra="train") from error
    try:
        network = VAE2d(ArchConfig.from_dict(dict(model.card.training["config"]["arch"])))
    except (KeyError, TypeError) as error:
        raise ModelError(f"model '{model.card.id}': its card does not say which network to build.") from error
    weights = {}
    for part in ("encoder.onnx", "decoder.onnx"):
        for tensor in onnx.load_from_string(model.file(part)).graph.initializer:
            values = np.array(numpy_helper.to_array(tensor), dtype=np.float32)
            weights[tensor.name.removesuffix(".half")] = torch.from_numpy(values)
    try:
        state = {name: weights.get(name) for name in network.state_dict()}
        state["log_step"] = torch.log(weights["gain"][0])
        state["log_scale"] = torch.log(weights["variance"][0]) / 2 - math.log(2) / 2
        network.load_state_dict(state)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise ModelError(f"model '{model.card.id}': its networks are not those that its card describes.") from error
    return network
