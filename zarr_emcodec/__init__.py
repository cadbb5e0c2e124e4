"""Neural compression of electron microscopy volumes as an ordinary Zarr codec.

Names are resolved on first use: importing the package loads NumPy and nothing heavier.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

try:
    __version__ = _version("zarr-emcodec")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOME = {
    "INRCodec": "zarr_emcodec.adapters.numcodecs",
    "INRField": "zarr_emcodec.roi.field",
    "INRSpec": "zarr_emcodec.codecs.inr",
    "VAECodec": "zarr_emcodec.adapters.numcodecs",
    "VAESpec": "zarr_emcodec.codecs.vae",
    "VQVAECodec": "zarr_emcodec.adapters.numcodecs",
    "VQVAESpec": "zarr_emcodec.codecs.vqvae",
    "create_array": "zarr_emcodec.adapters.arrays",
    "open": "zarr_emcodec.adapters.arrays",
    "options": "zarr_emcodec.runtime",
    "find_model": "zarr_emcodec.runtime",
    "list_models": "zarr_emcodec.runtime",
    "inspect": "zarr_emcodec.frame",
    "psnr": "zarr_emcodec.quality",
    "ssim": "zarr_emcodec.quality",
    "worst_error": "zarr_emcodec.quality",
    "EmCodecError": "zarr_emcodec.errors",
}
_MODULES = ("errors", "n5", "quality", "roi", "v3")

__all__ = ["__version__", *_HOME, *_MODULES]

if TYPE_CHECKING:
    from zarr_emcodec import errors as errors
    from zarr_emcodec import n5 as n5
    from zarr_emcodec import quality as quality
    from zarr_emcodec import roi as roi
    from zarr_emcodec import v3 as v3
    from zarr_emcodec.adapters.arrays import create_array as create_array
    from zarr_emcodec.adapters.arrays import open as open  # noqa: A004  # the package's own, as in zarr
    from zarr_emcodec.adapters.numcodecs import INRCodec as INRCodec
    from zarr_emcodec.adapters.numcodecs import VAECodec as VAECodec
    from zarr_emcodec.adapters.numcodecs import VQVAECodec as VQVAECodec
    from zarr_emcodec.codecs.inr import INRSpec as INRSpec
    from zarr_emcodec.codecs.vae import VAESpec as VAESpec
    from zarr_emcodec.codecs.vqvae import VQVAESpec as VQVAESpec
    from zarr_emcodec.errors import EmCodecError as EmCodecError
    from zarr_emcodec.frame import inspect as inspect
    from zarr_emcodec.quality import psnr as psnr
    from zarr_emcodec.quality import ssim as ssim
    from zarr_emcodec.quality import worst_error as worst_error
    from zarr_emcodec.roi.field import INRField as INRField
    from zarr_emcodec.runtime import find_model as find_model
    from zarr_emcodec.runtime import list_models as list_models
    from zarr_emcodec.runtime import options as options


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"zarr_emcodec.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'zarr_emcodec' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
