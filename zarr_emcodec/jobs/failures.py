"""What a block's failure calls for: another try, none, or the end of the job.

Errors in; one of three words out.
"""

from __future__ import annotations

from zarr_emcodec.errors import (
    FrameError,
    GuardError,
    MissingExtraError,
    ModelError,
    PlanMismatchError,
    RuntimeUnavailableError,
    SpecError,
    VerifyError,
)
from zarr_emcodec.jobs import store

HALTED = "halted"
"""State of a block that was not begun because the job is being stopped."""
AGAIN, POISONED, FATAL = "again", "poisoned", "fatal"
"""What a failure calls for: another try; none, since the block is at fault; the job's end, since all would fail."""
_SYSTEMIC = (ModelError, MissingExtraError, RuntimeUnavailableError, PlanMismatchError, ImportError)


def call_of(error: BaseException, *, reading: bool = False) -> str:
    """What a block's failure calls for.

    Parameters
    ----------
    error : Exception
    reading : bool
        Whether the source was being read: what is forbidden there may be forbidden for this block alone.

    Examples
    --------
    >>> call_of(OSError(28, "No space left on device")), call_of(SpecError("NaN")), call_of(TimeoutError())
    ('fatal', 'poisoned', 'again')
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _SYSTEMIC):
            return FATAL
        if isinstance(seen, SpecError | FrameError | GuardError | VerifyError):
            return POISONED
        seen = seen.__cause__
    stopped = store.error_number(error) in (*store.FULL, *store.LOCKED)
    return FATAL if stopped and not reading else AGAIN
