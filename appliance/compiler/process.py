"""Compilation in a process of its own, and the artifact's way to its place.

Owns the child process and the order after it: hash, sign the record, fsync, rename. The child
parses and runs what came from outside, so it gets another user (when root starts it), a clean
environment, and nothing but a directory to fill. Its parent trusts only the bytes it hashes.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from appliance.bundle.manifest import FileEntry, Manifest
from appliance.compiler import record as records
from appliance.compiler.artifact import GRAPH_NAME, PREFILL_NAME, WEIGHTS_NAME, open_named
from appliance.compiler.fingerprint import artifact_key
from appliance.compiler.record import Record
from appliance.config import Layout
from appliance.errors import (
    ApplianceError,
    DigestError,
    LayoutError,
    NotFoundError,
    UnsupportedError,
    VerificationError,
)
from appliance.fsops import (
    exclusive_lock,
    fsync_dir,
    hash_regular,
    make_dirs,
    open_regular,
    write_durable,
)
from appliance.model_store import StoredBundle
from appliance.trust.node_key import NodeKey

_INCOMING = ".incoming-"
_LOCK = ".lock"
_PREPACKED_FACTOR = 2.5
"""Artifact bytes for each byte of weights; 2.0 to 2.4 measured (decision 0024)."""
_ERRORS: dict[str, type[ApplianceError]] = {
    kind.code: kind for kind in (DigestError, LayoutError, UnsupportedError)
}


def disk_bytes(manifest: Manifest) -> int:
    """About how many bytes the artifact of a bundle takes."""
    parent = Path(manifest.graph.path).parent
    weights = sum(entry.size for entry in manifest.files if Path(entry.path).parent == parent)
    return int(weights * _PREPACKED_FACTOR)


def ensure_artifact(
    layout: Layout,
    bundle: StoredBundle,
    node_key: NodeKey,
    *,
    user: str | None = None,
    python: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """The directory of the verified artifact of `bundle`, compiled now unless it is there.

    `python` is the interpreter of the release that will load it; the current one if not given.
    Safe to repeat and to kill at any moment. An artifact that no longer verifies is replaced.
    Raises what the compilation raised; nothing is left behind then.
    """
    if python is None:
        python = layout.python if layout.python.exists() else Path(sys.executable)
    tell = progress or _silent
    make_dirs(layout.artifacts, mode=0o755)
    with exclusive_lock(layout.artifacts / _LOCK, wait=True):
        values = _fingerprint(python)
        key = artifact_key(bundle.digest, values)
        target = layout.artifacts / key
        try:
            return open_named(target, key, bundle.digest, node_key.public).directory
        except NotFoundError:
            tell(f"compiling {bundle.name} {bundle.version} for this machine")
        except VerificationError as error:
            tell(f"compiling {bundle.name} {bundle.version} again: {error.message}")
        _discard_leftovers(layout.artifacts)
        incoming = layout.artifacts / f"{_INCOMING}{secrets.token_hex(8)}"
        try:
            compile_in_process(bundle.directory, incoming, python=python, user=user)
            files = _settle(incoming)
            record = Record(
                bundle=bundle.digest,
                key=key,
                fingerprint=values,
                files=files,
                created=int(time.time()),
            )
            write_durable(incoming / records.NAME, records.sign(record, node_key), mode=0o644)
            _replace(incoming, target)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    return target


def compile_in_process(
    bundle_dir: Path, out_dir: Path, *, python: Path, user: str | None = None
) -> None:
    """Run `python -m appliance.compiler BUNDLE_DIR OUT_DIR`; creates `out_dir`.

    As root, `user` names who the child runs as. Raises the error that the child reports, or
    UnsupportedError if it died.
    """
    account = pwd.getpwnam(user) if user is not None and os.geteuid() == 0 else None
    out_dir.mkdir(mode=0o755)
    if account is not None:
        os.chown(out_dir, account.pw_uid, account.pw_gid)
    done = _run(python, [str(bundle_dir), str(out_dir)], account)
    if done.returncode != 0:
        raise _reported(done)


def _fingerprint(python: Path) -> dict[str, str]:
    """The fingerprint as the interpreter that will run the engine sees it."""
    done = _run(python, ["--fingerprint"], None)
    if done.returncode != 0:
        raise _reported(done)
    values: dict[str, str] = json.loads(done.stdout)
    return values


def _run(
    python: Path, arguments: list[str], account: pwd.struct_passwd | None
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            [str(python), "-I", "-m", "appliance.compiler", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env={},
            cwd="/",
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else [],
            umask=0o022,
        )
    except OSError as error:
        who = "" if account is None else f" as {account.pw_name}"
        raise UnsupportedError(
            f"{python} cannot be started{who}: {error.strerror}",
            hint="run `appliance install` again: it repairs the virtual environment",
        ) from error


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


def _settle(directory: Path) -> tuple[FileEntry, ...]:
    """Take the child's files over: make them the parent's, read-only and durable; hash them.

    The directory first: from then on a process that the child left behind can rename nothing.
    Raises LayoutError for anything but the plain files that a compilation makes.
    """
    root = os.geteuid() == 0
    if root:
        os.chown(directory, 0, 0)
    entries = []
    for name in sorted(path.name for path in directory.iterdir()):
        if name not in {GRAPH_NAME, PREFILL_NAME, WEIGHTS_NAME}:
            raise LayoutError(f"the compiler left {name!r} behind", path=name)
        fd = open_regular(directory / name, name=name)
        try:
            if root:
                os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o444)
            os.fsync(fd)
        finally:
            os.close(fd)
        size, sha256 = hash_regular(directory / name, name=name)
        entries.append(FileEntry(path=name, size=size, sha256=sha256))
    return tuple(entries)


def _replace(incoming: Path, target: Path) -> None:
    fsync_dir(incoming)
    if target.exists():
        # An engine that still maps the old files keeps them until it lets go.
        target.rename(target.with_name(f"{_INCOMING}{secrets.token_hex(8)}"))
    incoming.rename(target)
    fsync_dir(target.parent)
    _discard_leftovers(target.parent)


def _discard_leftovers(artifacts: Path) -> None:
    for path in artifacts.glob(f"{_INCOMING}*"):
        shutil.rmtree(path, ignore_errors=True)


def _silent(_message: str) -> None: ...
