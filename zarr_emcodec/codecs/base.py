"""What every codec's configuration shares: the words, their checks, plain JSON and back.

Words in, a frozen `Spec` out. The spec decides what encoding does; decoding asks the frame. Of a model only the name
and the digest are kept, so a spec from stored metadata needs no model until a chunk is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from zarr_emcodec.errors import SpecError
from zarr_emcodec.runtime import Card, list_models

Mode = Literal["entropy", "nominal"]
MAX_EFFORT = 9
_NEAR_ISOTROPIC = 2.0  # section thickness over pixel size up to which volumes are coded as such


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Configuration that all codecs have in common; each adds its own words and how it chooses a model.

    Parameters
    ----------
    ratio : float, optional
        Raw bytes over stored bytes of each chunk.
    model : str
        "auto", a name, "name@version", or "sha256:<hex>".
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

    CODEC: ClassVar[str]
    """Kind of codec, as model cards name it."""
    OVERHEAD_SHARE: ClassVar[float]
    """The most of an array's budget that chunks give up for its metadata."""

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
            put(self, name, number(name, getattr(self, name)))
        put(self, "ratio", self._default_ratio() if self.ratio is None else self.ratio)
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
        put(self, "window", _window(self.window))
        if self.background not in (None, "auto"):
            put(self, "background", number("background", self.background))
        self._check_own()
        if not self.digest:
            card = self._choose()
            put(self, "model", card.id)
            put(self, "digest", f"sha256:{card.digest.hex()}")

    @property
    def digests(self) -> tuple[str, ...]:
        """Of every model that its frames need."""
        return (self.digest,)

    @property
    def guarded(self) -> bool:
        """Whether a quality is promised."""
        return self.min_psnr is not None or self.max_error is not None

    @property
    def background_value(self) -> float | None:
        """The value looked for inside chunks, or None."""
        return 0.0 if self.background == "auto" else self.background

    def _default_ratio(self) -> float | None:
        """The ratio where none is stated."""
        raise NotImplementedError

    def _check_own(self) -> None:
        """Check the words that this codec alone has."""

    def _choose(self) -> Card:
        """The card that `model` and the other words mean."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """Plain JSON data; what stands in array metadata."""
        config = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}

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

    @classmethod
    def cards(cls) -> list[Card]:
        """Cards of the installed models that this codec encodes with."""
        return [model.card for model in list_models() if model.card.codec == cls.CODEC and model.can_encode]

    @classmethod
    def check_kind(cls, card: Card) -> None:
        """Refuse a model of another codec."""
        if card.codec != cls.CODEC:
            raise SpecError(
                f"model '{card.id}' is for codec '{card.codec}', not '{cls.CODEC}'.", name="model", value=card.id
            )


def put(spec: Spec, name: str, value: object) -> None:
    """Set a field of a spec that is being built."""
    object.__setattr__(spec, name, value)


def number(name: str, value: Any) -> float | None:
    """A finite number, or None as it is.

    Raises
    ------
    SpecError
        Naming the word, if it is anything else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SpecError(f"{name} {value!r}: needs a finite number.", name=name, value=value)
    return float(value)


def check_effort(effort: Any) -> None:
    """Refuse what is not a whole number from 0 to 9."""
    if isinstance(effort, bool) or not isinstance(effort, int) or not 0 <= effort <= MAX_EFFORT:
        raise SpecError(f"effort {effort!r}: needs an integer from 0 to {MAX_EFFORT}.", name="effort", value=effort)


def voxel_size(value: Any) -> tuple[float, float, float] | None:
    """A voxel size (z, y, x) of three positive numbers, or None as it is.

    Raises
    ------
    SpecError
        If it is anything else.
    """
    if value is None:
        return None
    try:
        z, y, x = (number("voxel_nm", float(v)) or 0.0 for v in value)
    except (TypeError, ValueError):
        z = y = x = 0.0
    if not min(z, y, x) > 0:
        raise SpecError(f"voxel_nm {value!r}: needs three positive numbers, (z, y, x).", name="voxel_nm", value=value)
    return z, y, x


def axes_to_code(voxel_nm: tuple[float, float, float] | None) -> int:
    """3 for volumes that are near isotropic, 2 for sections and where nothing is known.

    Examples
    --------
    >>> axes_to_code((10, 8, 8)), axes_to_code((40, 4, 4)), axes_to_code(None)
    (3, 2, 2)
    """
    return 3 if voxel_nm is not None and voxel_nm[0] <= _NEAR_ISOTROPIC * min(voxel_nm[1:]) else 2


def _window(window: Any) -> tuple[float, float] | None:
    if window is None:
        return None
    try:
        low, high = (number("window", float(v)) for v in window)
    except (TypeError, ValueError):
        low = high = None
    if low is None or high is None or not low < high:
        raise SpecError(f"window {window!r}: needs two numbers, low below high.", name="window", value=window)
    largest = float(np.finfo(np.float32).max)
    if max(-low, high, high - low) > largest or (high - low) / 255 < float(np.finfo(np.float32).tiny):
        raise SpecError(f"window {window!r}: float32 cannot hold it.", name="window", value=window)
    return low, high
