"""What a user asks of a codec, as a frozen value that is checked once and written to metadata.

Words in, a `VAESpec` out, and back to plain JSON. The spec decides what encoding does; decoding asks the frame. Of a
model only the name and the digest are kept, so a spec from stored metadata needs no model until a chunk is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np

from zarr_emcodec.errors import SpecError
from zarr_emcodec.runtime import Card, find_model, list_models

Mode = Literal["entropy", "nominal"]
DEFAULT_RATIO = 32.0


@dataclass(frozen=True, kw_only=True)
class VAESpec:
    """Configuration of `VAECodec`.

    Parameters
    ----------
    ratio : float, optional
        Raw bytes over stored bytes of each chunk: never below, at most about 10 % above. 32 unless a guard is given.
    model : str
        "auto" (the model whose range holds the ratio), a name, "name@version", or "sha256:<hex>".
    mode : {"entropy", "nominal"}
        How latents are stored: entropy-coded, or in fields of fixed width whose size follows from the shape alone.
    min_psnr : float, optional
        Floor in dB under each chunk's PSNR (peak: 255 for uint8, the window's width otherwise), checked on the
        decoder's output before the chunk is written. It takes precedence over `ratio`.
    max_error : float, optional
        Ceiling in source units over each voxel's absolute error, checked likewise; 0 stores losslessly. On another
        runtime than the writer's it holds within one grey level more.
    window : (float, float), optional
        Values that become grey levels 0 and 255 in uint16, int16 and float32 data; each chunk's own percentiles when
        not given. Values outside are kept as far as four widths of the window beyond it. uint8 is used as it is.
    background : float, "auto" or None
        Voxel value stored exactly and nearly free; "auto" is 0. None: no background is looked for.
    digest : str
        "sha256:<hex>" of the model; filled in from `model` when empty.

    Raises
    ------
    SpecError
        If a value is out of range or the model lacks the ratio; the message names what would do.
    ModelNotFoundError
        If `model` is not on the search path.
    """

    ratio: float | None = None
    model: str = "auto"
    mode: Mode = "entropy"
    min_psnr: float | None = None
    max_error: float | None = None
    window: tuple[float, float] | None = None
    background: float | Literal["auto"] | None = "auto"
    digest: str = ""

    def __post_init__(self) -> None:
        for name in ("ratio", "min_psnr", "max_error"):
            _set(self, name, _number(name, getattr(self, name)))
        if self.ratio is None and not self.guarded:
            _set(self, "ratio", DEFAULT_RATIO)
        if self.ratio is not None and not 1 <= self.ratio <= 65536:
            raise SpecError(f"ratio {self.ratio:g}: needs a number from 1 to 65536.", name="ratio", value=self.ratio)
        if self.max_error is not None and self.max_error < 0:
            raise SpecError(
                f"max_error {self.max_error:g}: cannot be negative.", name="max_error", value=self.max_error
            )
        if self.mode not in get_args(Mode):
            raise SpecError(f"mode {self.mode!r}: needs 'entropy' or 'nominal'.", name="mode", value=self.mode)
        if self.mode == "nominal" and self.guarded:
            raise SpecError(
                "mode 'nominal' stores a size that follows from the shape, so it cannot promise a quality. "
                "Drop min_psnr and max_error, or use mode='entropy'.",
                name="mode",
                value=self.mode,
            )
        _set(self, "window", _window(self.window))
        if self.background not in (None, "auto"):
            _set(self, "background", _number("background", self.background))
        if not self.digest:
            card = self._choose()
            _set(self, "model", card.id)
            _set(self, "digest", f"sha256:{card.digest.hex()}")

    @property
    def guarded(self) -> bool:
        """Whether a quality is promised."""
        return self.min_psnr is not None or self.max_error is not None

    @property
    def background_value(self) -> float | None:
        """The value looked for inside chunks, or None."""
        return 0.0 if self.background == "auto" else self.background

    def _choose(self) -> Card:
        if self.model != "auto":
            card = find_model(self.model).card
            _check_kind(card)
            if self.ratio is not None and not card.ratio_range[0] <= self.ratio <= card.ratio_range[1]:
                low, high = card.ratio_range
                raise SpecError(
                    f"model '{card.id}' covers ratios {low:g} to {high:g}, not {self.ratio:g}. {_others(self.ratio)}",
                    name="ratio",
                    value=self.ratio,
                )
            return card
        cards = _vae_cards()
        if not cards:
            return find_model("vae").card  # raises, naming the folders that were searched
        if self.ratio is None:  # a quality was asked for: the model with the finest settings can go lowest
            return min(cards, key=lambda card: card.ratio_range[0])
        fitting = [card for card in cards if card.ratio_range[0] <= self.ratio <= card.ratio_range[1]]
        if not fitting:
            raise SpecError(
                f"no model covers ratio {self.ratio:g}. {_others(self.ratio)}", name="ratio", value=self.ratio
            )
        # where ranges overlap, the one that is made for higher ratios: its range begins where it is ahead
        return max(fitting, key=lambda card: (card.ratio_range[0], card.version))

    def to_config(self) -> dict[str, Any]:
        """Plain JSON data; what stands in array metadata."""
        config = dataclasses.asdict(self)
        config["window"] = None if self.window is None else list(self.window)
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, codec: str) -> Self:
        """Inverse of `to_config`.

        Raises
        ------
        SpecError
            If the configuration holds a key that this version does not know, naming codec, key and version.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for key in config:
            if key not in known:
                from zarr_emcodec import __version__

                raise SpecError(
                    f"codec '{codec}': unknown configuration key '{key}'; zarr_emcodec {__version__} knows "
                    f"{', '.join(sorted(known))}. If a newer version wrote the array, upgrade zarr_emcodec.",
                    name=key,
                    value=config[key],
                )
        return cls(**config)


def _set(spec: VAESpec, name: str, value: object) -> None:
    object.__setattr__(spec, name, value)


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SpecError(f"{name} {value!r}: needs a finite number.", name=name, value=value)
    return float(value)


def _window(window: Any) -> tuple[float, float] | None:
    if window is None:
        return None
    try:
        low, high = (_number("window", float(v)) for v in window)
    except (TypeError, ValueError):
        low = high = None
    if low is None or high is None or not low < high:
        raise SpecError(f"window {window!r}: needs two numbers, low below high.", name="window", value=window)
    largest = float(np.finfo(np.float32).max)
    if max(-low, high, high - low) > largest or (high - low) / 255 < float(np.finfo(np.float32).tiny):
        raise SpecError(f"window {window!r}: float32 cannot hold it.", name="window", value=window)
    return low, high


def _check_kind(card: Card) -> None:
    if card.codec != "vae":
        raise SpecError(f"model '{card.id}' is for codec '{card.codec}', not 'vae'.", name="model", value=card.id)


def _vae_cards() -> list[Card]:
    return [model.card for model in list_models() if model.card.codec == "vae" and model.can_encode]


def _others(ratio: float | None) -> str:
    ranges = [f"'{c.id}' ({c.ratio_range[0]:g} to {c.ratio_range[1]:g})" for c in _vae_cards()]
    return f"Installed: {', '.join(ranges)}." if ranges else "No other model is installed."
