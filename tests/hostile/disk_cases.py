"""A hostile or damaged disk: what a node's programs find where they left something else.

The model `letters` is unloaded, what it is loaded from is damaged, and it is asked for again; the
files of daemons that would not survive it are damaged in a copy and opened as a command opens them.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc

from appliance.access import KeyStore
from appliance.audit.export import export
from appliance.audit.fsck import verify
from appliance.compiler import open_artifact
from appliance.config import Layout, parse_config
from appliance.errors import ApplianceError
from appliance.metering import Meter
from appliance.model_store import ModelStore
from appliance.pb import engine_v1_pb2 as pb
from appliance.trust.node_key import PUBLIC_NAME, NodePublicKey
from tests.hostile.oracle import faults_of_text
from tests.hostile.stack import SECONDS, Stack

Damage = Callable[[Path], object]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Damage] = {
    "a bit": _flip,
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "gone": Path.unlink,
    "a link": _link,
    "a pipe": _pipe,
    "nonsense": lambda path: path.write_bytes(b"[" * 5000),
}


def artifact_files(stack: Stack) -> list[Path]:
    """What the engine loads for `letters`: the files of its artifact."""
    layout = stack.config.layout
    digest = ModelStore(layout.models).active()["letters"].digest
    node = NodePublicKey.load(layout.node / PUBLIC_NAME)
    return sorted(open_artifact(layout.artifacts, digest, node).directory.iterdir())


def faults_of_load(stack: Stack, path: Path, damage: Damage) -> list[str]:
    """What is wrong with the engine's answer when it shall load `letters` from a damaged file."""
    with _kept(path, stack.root / "aside"):
        damage(path)
        code, details = load(stack)
    found = faults_of_text(details.encode())
    if code not in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND}:
        found.append(f"{code.name}: {details[:200]}")
    return found


def load(stack: Stack) -> tuple[grpc.StatusCode, str]:
    """Unload `letters` if it is there, and load it."""
    with grpc.insecure_channel(f"unix:{stack.config.layout.engine_socket}") as channel:
        code = grpc.StatusCode.OK, ""
        for method, kind in (("Unload", pb.UnloadRequest), ("Load", pb.LoadRequest)):
            call = channel.unary_unary(f"/appliance.engine.v1.Engine/{method}", None, None)
            try:
                call(kind(model="letters").SerializeToString(), timeout=SECONDS)
                code = grpc.StatusCode.OK, ""
            except grpc.RpcError as error:
                code = error.code(), error.details() or ""
    return code


@contextmanager
def _kept(path: Path, aside: Path) -> Iterator[None]:
    """The file `path` is afterwards what it was, times included."""
    path.rename(aside)
    shutil.copy2(aside, path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        aside.rename(path)


SETTINGS: dict[str, bytes] = {
    "no TOML": b"[api",
    "no UTF-8": b"[api]\nhosts = '\xff'",
    "a setting that nobody knows": b"[api]\nevil = true",
    "a section that nobody knows": b"[evil]\na = 1",
    "a setting twice": b"[api]\nlisten_port = 1\nlisten_port = 2",
    "a port beyond ports": b"[api]\nlisten_port = 70000",
    "a port in words": b"[api]\nlisten_port = 'any'",
    "a body below zero": b"[api]\nmax_body_bytes = -1",
    "a time that is no number": b"[api]\nrequest_timeout_seconds = nan",
    "threads below zero": b"[engine]\nthreads = -4",
    "a truth in words": b"[api]\nstore_files = 'yes'",
    "an integer of 1,000 digits": b"[engine]\nthreads = " + b"9" * 1000,
}


def faults_of_settings(text: bytes) -> list[str]:
    """What is wrong with how a hostile appliance.toml is refused."""
    try:
        parse_config(text, Layout(Path("/nowhere")))
    except ApplianceError as error:
        return [] if error.hint and error.message else ["no hint"]
    return ["it was taken"]


def faults_of_database(stack: Stack, base: Path, name: str, damage: Damage) -> list[str]:
    """What is wrong with how a damaged database of keys or usage is refused."""
    path = base / "it.db"
    path.unlink(missing_ok=True)
    source = getattr(stack.config.layout, name)
    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(path)) as copy:
        live.backup(copy)
    damage(path)
    try:
        if name == "keys_db":
            with KeyStore(path) as keys:
                keys.list()
        else:
            with closing(Meter(path)) as meter:
                meter.rows()
    except ApplianceError as error:
        return [] if error.hint else [f"no hint: {error.message}"]
    return ["it was taken"]


DATABASE_DAMAGES = ("nonsense",)


def faults_of_log(stack: Stack, base: Path, file: str, damage: Damage) -> list[str]:
    """Whether a damaged copy of the audit log still verifies."""
    copy = base / "audit"
    shutil.rmtree(copy, ignore_errors=True)
    # The endpoint goes on writing: temporaries and tiles that are not full yet come and go.
    export(stack.config.layout.audit, copy)
    (path, *_) = sorted(copy.glob(file))
    damage(path)
    return [] if verify(copy).findings else [f"{path.name} verifies"]


LOG_FILES = ("segments/*.seg", "checkpoint", "audit.vkey")
LOG_DAMAGES = ("a bit", "empty", "gone", "nonsense")
