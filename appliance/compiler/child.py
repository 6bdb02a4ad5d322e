"""The compiler's child process, from its parent's side.

Owns how it is started: another user (when root starts it), a clean environment, nothing but a
directory to fill. It parses and runs what came from outside; what it says of a failure becomes a
typed error, and what it leaves behind is its parent's to check.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
from pathlib import Path

from appliance.errors import (
    ApplianceError,
    CapacityError,
    DigestError,
    LayoutError,
    UnsupportedError,
    VerificationError,
)

_ERRORS: dict[str, type[ApplianceError]] = {
    kind.code: kind for kind in (CapacityError, DigestError, LayoutError, UnsupportedError)
}


def run_compiler(python: Path, arguments: list[str], user: str | None = None) -> bytes:
    """Run `python -m appliance.compiler ARGUMENTS`; what it wrote to standard output.

    As root, `user` names who the child runs as. Raises the error that the child reports, or
    UnsupportedError if it died or could not be started.
    """
    account = _account(user)
    try:
        done = subprocess.run(
            [str(python), "-I", "-m", "appliance.compiler", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env={},
            cwd="/",
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else _device_groups(),
            umask=0o022,
        )
    except OSError as error:
        who = "" if account is None else f" as {account.pw_name}"
        raise UnsupportedError(
            f"{python} cannot be started{who}: {error.strerror}",
            hint="run `appliance install` again: it repairs the virtual environment",
        ) from error
    if done.returncode != 0:
        raise _reported(done)
    return done.stdout


def compile_in_process(
    bundle_dir: Path, out_dir: Path, *, python: Path, user: str | None = None
) -> None:
    """Run `python -m appliance.compiler BUNDLE_DIR OUT_DIR`; creates `out_dir`.

    Raises as `run_compiler` does.
    """
    make_for_child(out_dir, user)
    run_compiler(python, [str(bundle_dir), str(out_dir)], user)


def make_for_child(directory: Path, user: str | None) -> None:
    """Create `directory` so that a child run as `user` can fill it."""
    directory.mkdir(mode=0o755)
    account = _account(user)
    if account is not None:
        os.chown(directory, account.pw_uid, account.pw_gid)


def _account(user: str | None) -> pwd.struct_passwd | None:
    return pwd.getpwnam(user) if user is not None and os.geteuid() == 0 else None


def _device_groups() -> list[int]:
    """The groups that the GPU's device nodes are open to, where they are not open to all."""
    nodes = (path.stat() for path in Path("/dev").glob("nvidia*") if path.is_char_device())
    return sorted({node.st_gid for node in nodes if node.st_gid and node.st_mode & stat.S_IWGRP})


def _reported(done: subprocess.CompletedProcess[bytes]) -> ApplianceError:
    """The error in the last line of the child's standard error."""
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    try:
        document = json.loads(lines[-1])
        message, hint, code = document["message"], document["hint"], document["code"]
        path = document.get("path", "")
    except (IndexError, ValueError, KeyError, TypeError):
        return _died(done.returncode)
    kind = _ERRORS.get(code, VerificationError if path else UnsupportedError)
    if issubclass(kind, VerificationError):
        return kind(message, path=path, hint=hint, code=code)
    return kind(message, hint=hint, code=code)


def _died(status: int) -> UnsupportedError:
    how = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
    return UnsupportedError(
        f"the compiler {how}",
        hint="the machine may have too little memory for this model: look at the system's log",
        code="compiler_died",
    )
