"""The passphrase of the private keys: from a file, from the environment's file, or typed.

Refuses a passphrase on the command line, where every process of the machine could read it, and in
a file that other users can read, or can change since it is theirs.
"""

from __future__ import annotations

import getpass
import os
import shlex
import stat
import sys
from pathlib import Path

from appliance.config import (
    PASSPHRASE_FILE_VARIABLE,
    TOKEN_PIN_FILE_VARIABLE,
    passphrase_file,
    token_pin_file,
)
from appliance.errors import UsageError

MIN_BYTES = 12
_FILE_HINT = f"name a file with --passphrase-file or {PASSPHRASE_FILE_VARIABLE}"


def read_passphrase(file: Path | None) -> bytes:
    """The passphrase from `file`, or APPLIANCE_PASSPHRASE_FILE's file, or the terminal.

    A file's trailing line end does not count. Raises UsageError, also for a file that other users
    may read or that is another's.
    """
    chosen = file or passphrase_file()
    if chosen is not None:
        return _from_file(chosen)
    return _typed("Passphrase of the keys: ")


def new_passphrase(file: Path | None) -> bytes:
    """As `read_passphrase`, for new keys: typed twice, and not too short. Raises UsageError."""
    return following_passphrase(file or passphrase_file())


def following_passphrase(file: Path | None) -> bytes:
    """As `new_passphrase`, to come after another one: the environment's file has that one."""
    if file is not None:
        passphrase = _from_file(file)
    else:
        passphrase = _typed("New passphrase for the keys: ")
        if _typed("The same again: ") != passphrase:
            raise UsageError("the two passphrases differ", hint="run the command again")
    if len(passphrase) < MIN_BYTES:
        raise UsageError(
            f"the passphrase is shorter than {MIN_BYTES} characters",
            hint="use five or more random words",
        )
    return passphrase


def read_pin(token: str) -> str:
    """The PIN of `token`: from APPLIANCE_TOKEN_PIN_FILE's file, or typed. Raises UsageError."""
    chosen = token_pin_file()
    if chosen is not None:
        return _from_file(chosen).decode("utf-8")
    hint = f"name a file that holds it in {TOKEN_PIN_FILE_VARIABLE}"
    return _typed(f"PIN of {token}: ", what=f"PIN of {token}", hint=hint).decode("utf-8")


def _from_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            _refuse_shared(path, os.fstat(file.fileno()))
            passphrase = file.read().rstrip(b"\r\n")
    except OSError as error:
        raise UsageError(
            f"the passphrase file {path} cannot be read: {error.strerror}",
            hint="name a file that holds the passphrase and nothing else",
        ) from None
    if not passphrase:
        raise UsageError(f"the passphrase file {path} is empty", hint="write the passphrase in it")
    return passphrase


def _refuse_shared(path: Path, found: os.stat_result) -> None:
    """Raise UsageError unless the open file is this user's or root's, and for its owner alone.

    Pipes and terminals have no content that another could come back for.
    """
    if not stat.S_ISREG(found.st_mode):
        return
    name = shlex.quote(str(path))
    if found.st_uid not in {os.geteuid(), 0}:
        raise UsageError(
            f"the passphrase file {path} belongs to another user",
            hint=f"make one of your own: install -m 600 {name} NEW",
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise UsageError(
            f"the passphrase file {path} is open to other users: its mode is {mode:04o}",
            hint=f"chmod 600 {name}",
        )


def _typed(prompt: str, *, what: str = "passphrase", hint: str = _FILE_HINT) -> bytes:
    if not sys.stdin.isatty():
        raise UsageError(f"there is no {what} and nobody to ask", hint=hint)
    return getpass.getpass(prompt).encode("utf-8")
