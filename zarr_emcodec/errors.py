"""Every error the package raises on purpose.

::

    EmCodecError(Exception)
    |- FrameError(ValueError)           bytes are not a frame we can read      .offset .field
    |  |- TruncatedFrameError           ended early                            .needed .found
    |  |- ChecksumError                 header, section or content             .expected .found
    |  '- UnsupportedFrameError         well-formed; newer version or feature  .version
    |- SpecError(ValueError)            this config cannot work                .name .value
    |- ModelError
    |  |- ModelNotFoundError(LookupError)                                      .model_id .searched
    |  '- ModelMismatchError            same id, other digest                  .expected .found
    |- RuntimeUnavailableError          an asked-for device or backend is absent  .asked .available
    |- GuardError                       encoder could not keep the promise     .asked .reached
    |- JobError
    |  |- PlanMismatchError
    |  '- VerifyError                                                          .chunks
    '- MissingExtraError(ImportError)   optional dependency absent             .extra

Double parents let a caller who knows nothing of this package catch ``ValueError`` or ``LookupError``.
What a program needs to react to is an attribute; messages are for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class EmCodecError(Exception):
    """Parent of every error that this package raises on purpose."""


class FrameError(EmCodecError, ValueError):
    """The bytes are not a frame that can be read."""

    def __init__(self, message: str, *, offset: int | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.offset = offset
        self.field = field


class TruncatedFrameError(FrameError):
    """The bytes ended before the frame did."""

    def __init__(
        self, message: str, *, needed: int, found: int, offset: int | None = None, field: str | None = None
    ) -> None:
        super().__init__(message, offset=offset, field=field)
        self.needed = needed
        self.found = found


class ChecksumError(FrameError):
    """A stored CRC32C differs from that of the bytes."""

    def __init__(
        self, message: str, *, expected: int, found: int, offset: int | None = None, field: str | None = None
    ) -> None:
        super().__init__(message, offset=offset, field=field)
        self.expected = expected
        self.found = found


class UnsupportedFrameError(FrameError):
    """The frame is of a newer format version, or uses a feature that this reader lacks."""

    def __init__(
        self, message: str, *, version: int | None = None, offset: int | None = None, field: str | None = None
    ) -> None:
        super().__init__(message, offset=offset, field=field)
        self.version = version


class SpecError(EmCodecError, ValueError):
    """The configuration, or the data it was given, cannot work."""

    def __init__(self, message: str, *, name: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.name = name
        self.value = value


class ModelError(EmCodecError):
    """A model directory is missing, damaged or not the one that was asked for."""


class ModelNotFoundError(ModelError, LookupError):
    """No folder on the search path holds the model."""

    def __init__(self, message: str, *, model_id: str, searched: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.model_id = model_id
        self.searched = tuple(searched)


class ModelMismatchError(ModelError):
    """The model's files are not those that its digest names."""

    def __init__(self, message: str, *, expected: str, found: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found


class RuntimeUnavailableError(EmCodecError, RuntimeError):
    """The device or the inference backend that was asked for is not here."""

    def __init__(self, message: str, *, asked: str, available: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.asked = asked
        self.available = tuple(available)


class GuardError(EmCodecError):
    """The encoder could not keep the quality that it was asked to promise."""

    def __init__(self, message: str, *, asked: float, reached: float) -> None:
        super().__init__(message)
        self.asked = asked
        self.reached = reached


class JobError(EmCodecError):
    """A recompression job cannot go on."""


class PlanMismatchError(JobError):
    """The ledger belongs to another plan."""


class VerifyError(JobError):
    """Stored chunks differ from what was promised of them."""

    def __init__(self, message: str, *, chunks: Sequence[tuple[int, ...]]) -> None:
        super().__init__(message)
        self.chunks = tuple(chunks)


class MissingExtraError(EmCodecError, ImportError):
    """An optional dependency is absent; the message holds the install command."""

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency. Install it with: pip install 'zarr_emcodec[{extra}]'.")
        self.extra = extra
