"""The whole error tree of the appliance, drawn here and nowhere else.

    ApplianceError                      code, message, hint; exit status for the CLI
    ├── UsageError                      the caller's input is wrong (exit 2)
    │   ├── ConfigError                 a setting in appliance.toml is wrong
    │   └── RequestError                a request to the engine or the API is wrong
    │       └── ObjectionError          the model's own template will not have this conversation
    ├── NotFoundError                   a named thing does not exist (exit 3)
    ├── ConflictError                   the state of the node forbids it now (exit 4)
    │   └── LockedError                 another process holds the lock
    ├── VerificationError               something did not verify; nothing of it was used (exit 5)
    │   ├── MetadataError               TUF metadata: signature, version, expiry, threshold
    │   ├── DigestError                 a file's bytes are not the signed bytes
    │   ├── SignatureError              a signature does not match its key
    │   ├── LayoutError                 extra, missing, renamed or escaping files
    │   └── AuditError                  the audit log does not verify
    ├── UnsupportedError                understood, but this build cannot do it (exit 6)
    │   └── CheckpointError             a checkpoint that the builder cannot express
    ├── PreflightError                  one or more blockers; carries all of them (exit 7)
    ├── CapacityError                   no room: memory, cache, queue, disk (exit 8)
    │   ├── RateLimitError              too much at once; it passes by itself
    │   └── QuotaError                  a budget is used up; trying again does not help
    ├── UnavailableError                a daemon or a device does not answer (exit 9)
    │   └── AuditUnavailableError       the audit log cannot be written: fail closed
    └── StorageError                    a disk operation failed (exit 10)

Every error that a person can cause carries a hint: one sentence that says what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def first_line(error: BaseException) -> str:
    """What another library's exception says, in one line; its kind, if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class ApplianceError(Exception):
    """Base of all errors that are not our own bugs.

    Attributes:
        code: stable machine-readable name, lower_snake_case.
        message: what is wrong, one sentence, no secrets, no stack.
        hint: what the reader can do about it; empty if there is nothing to do.
        exit_status: process exit status of a command that ends with this error.
    """

    code: str = "appliance_error"
    exit_status: int = 1

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code


class UsageError(ApplianceError):
    code = "usage"
    exit_status = 2


class ConfigError(UsageError):
    code = "config_invalid"


class RequestError(UsageError):
    """A refused request; `param` names the offending parameter in the caller's words."""

    code = "invalid_request"

    def __init__(
        self, message: str, *, param: str | None = None, hint: str = "", code: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.param = param


class ObjectionError(RequestError):
    """A chat template's own refusal of what it was given."""


class NotFoundError(ApplianceError):
    code = "not_found"
    exit_status = 3


class ConflictError(ApplianceError):
    code = "conflict"
    exit_status = 4


class LockedError(ConflictError):
    code = "locked"


class VerificationError(ApplianceError):
    """Something did not verify. `path` names the file, relative to the media or bundle."""

    code = "verification_failed"
    exit_status = 5

    def __init__(
        self, message: str, *, path: str = "", hint: str = "", code: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.path = path


class MetadataError(VerificationError):
    code = "metadata_invalid"


class DigestError(VerificationError):
    code = "digest_mismatch"


class SignatureError(VerificationError):
    code = "signature_invalid"


class LayoutError(VerificationError):
    code = "layout_invalid"


class AuditError(VerificationError):
    code = "audit_invalid"


class UnsupportedError(ApplianceError):
    code = "unsupported"
    exit_status = 6


class CheckpointError(UnsupportedError):
    code = "checkpoint_unsupported"


@dataclass(frozen=True, slots=True)
class Blocker:
    """One reason why an operation cannot start, with its remedy."""

    code: str
    message: str
    remedy: str


class PreflightError(ApplianceError):
    """All blockers of an operation at once, so that the operator fixes them in one go."""

    code = "preflight_failed"
    exit_status = 7

    def __init__(self, blockers: Sequence[Blocker]) -> None:
        assert blockers, "a preflight without blockers is a success"
        count = len(blockers)
        super().__init__(
            f"{count} blocker{'s' if count > 1 else ''} found; nothing was changed",
            hint="fix what is listed and run the command again",
        )
        self.blockers = tuple(blockers)


class CapacityError(ApplianceError):
    code = "capacity"
    exit_status = 8


class RateLimitError(CapacityError):
    """A limit that time lifts: after `wait_ms` milliseconds, or never if that is None."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, wait_ms: int | None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.wait_ms = wait_ms


class QuotaError(CapacityError):
    code = "insufficient_quota"


class UnavailableError(ApplianceError):
    code = "unavailable"
    exit_status = 9


class AuditUnavailableError(UnavailableError):
    code = "audit_unavailable"


class StorageError(ApplianceError):
    code = "storage"
    exit_status = 10
