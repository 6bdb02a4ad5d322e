"""The first code that runs on a bare node: appliance.pyz's `__main__`.

Owns the step from one file and a bare CPython to a program with its libraries: unpack the wheels
that fit this interpreter into a private directory, and hand over. Uses the standard library
alone. Verifies nothing: appliance.pyz is the anchor, and a person has compared its SHA-256 with
the fingerprint sheet. Leaves nothing behind.
"""

import io
import os
import platform
import shutil
import signal
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from types import FrameType

SUPPORTED = ((3, 11), (3, 12), (3, 13))


def unsupported() -> str:
    """Why this machine cannot run the installer, or nothing."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in SUPPORTED:
        return f"this is Python {platform.python_version()}; the installer needs CPython 3.11-3.13"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"this is {platform.system()} on {platform.machine()}; Linux on x86-64 is needed"
    return ""


def unpack(archive: Path, directory: Path) -> None:
    """Put what this interpreter needs from `archive` into `directory`."""
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    with zipfile.ZipFile(archive) as outer:
        for name in outer.namelist():
            if name.startswith(("wheels/any/", f"wheels/{own}/")):
                with zipfile.ZipFile(io.BytesIO(outer.read(name))) as wheel:
                    wheel.extractall(directory)
        (directory / "installer" / "root.json").write_bytes(outer.read("root.json"))


def unpack_or_say(archive: Path, directory: Path) -> None:
    """`unpack`; what is damaged or has no room ends in a line for people."""
    try:
        unpack(archive, directory)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        sys.exit(f"error: {archive} is damaged: {error}\nhint: get fresh media from the packager")
    except OSError as error:
        sys.exit(f"error: cannot unpack {archive} into {directory}: {error}")


def scratch() -> Path:
    """A private directory that libraries can be loaded from: /tmp is often mounted noexec."""
    for base in (tempfile.gettempdir(), "/var/tmp", Path.home()):  # noqa: S108
        if os.access(base, os.W_OK) and not os.statvfs(base).f_flag & os.ST_NOEXEC:
            return Path(tempfile.mkdtemp(prefix="appliance-", dir=base))
    sys.exit("error: no directory to unpack into: set TMPDIR to one that is not mounted noexec")


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP, the end of a connection by SSH, end a command as failures do: what it
    made for itself is removed. The status is 128 and the signal's number.

    Where somebody else decided what a signal means, it stays so: `nohup`, and daemons.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Unpack, run the installer, clean up."""
    end_on_signals()
    reason = unsupported()
    if reason:
        sys.exit(f"error: {reason}")
    directory = scratch()
    try:
        unpack_or_say(Path(__file__).parent, directory)
        sys.path.insert(0, str(directory))
        sys.dont_write_bytecode = True
        from installer.bootstrap import main as bootstrap

        bootstrap()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
