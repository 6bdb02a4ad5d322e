"""SIGKILL at every system call that writes, of everything that changes a node's records.

Each call of the counted ones in turn kills the process; then everything is opened again as after
a restart. What was acknowledged is there, nothing is there twice, the audit log verifies, the
databases are whole and the bill is what the log says. A sample here, every call with
scripts/test --full; the counts are printed.
"""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.access import KeyStore
from appliance.audit import AuditLog, read_events
from appliance.audit.event import Admin, Request, Response
from appliance.audit.fsck import verify
from appliance.config import Config, Layout
from appliance.metering import Meter, catch_up, rebuild
from tests.conftest import REPOSITORY, BuildOnce
from tests.sweep import operation

WRITING = (
    "write,writev,pwrite64,pwritev,fsync,fdatasync,ftruncate,fallocate,copy_file_range,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "chmod,fchmod,fchmodat,chown,fchown"
)
SAMPLE = 2
"""Kills of each operation in a quick run."""
RecordProperty = Callable[[str, object], None]


@pytest.fixture
def prepared(build_once: BuildOnce) -> Path:
    return build_once("sweep-node", operation.prepare)


def points(prepared: Path, base: Path, name: str) -> list[tuple[str, int]]:
    """(system call, n) of every writing call of the operation, from `begun` on."""
    shutil.copytree(prepared, base, symlinks=True)
    assert traced(base, name, "-e", f"trace={WRITING}") == (0, True)
    lines = (base / "trace").read_text().splitlines()
    made: Counter[str] = Counter()
    found: list[tuple[str, int]] = []
    begun = False
    for line in lines:
        match = re.match(r"\d+ +(\w+)\(", line)
        if match is None:
            continue
        made[match[1]] += 1
        if begun:
            found.append((match[1], made[match[1]]))
        begun = begun or '"begun\\n"' in line
    return found


def traced(base: Path, name: str, *options: str) -> tuple[int, bool]:
    """Exit status of the operation under strace, and whether it was acknowledged."""
    strace = shutil.which("strace")
    command = [str(strace), "-f", "-qq", "-o", str(base / "trace"), *options]
    if strace is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("tracing with strace is not permitted here")
    done = subprocess.run(
        [*command, sys.executable, "-B", "-m", "tests.sweep.operation", name, str(base)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        timeout=300,
        check=False,
    )
    return done.returncode, b"acked\n" in done.stdout


def sweep(prepared: Path, tmp_path: Path, name: str, *, kills: int = 0) -> int:
    """Kill the operation at each of its calls, or at `kills` of them; returns how many they are."""
    counted = points(prepared, tmp_path / "counted", name)
    step = max(1, len(counted) // kills) if kills else 1
    for call, nth in counted[step // 2 :: step]:
        base = tmp_path / f"{call}-{nth}"
        shutil.copytree(prepared, base, symlinks=True)
        inject = f"inject={call}:signal=SIGKILL:when={nth}"
        status, acked = traced(base, name, "-e", f"trace={call}", "-e", inject)
        where = f"{name} killed at {call} number {nth}"
        assert status in {-signal.SIGKILL, 128 + signal.SIGKILL}, where
        CHECKS[name](base, acked, where)
        assert_whole(base, where)
        shutil.rmtree(base)
    return len(counted)


@pytest.mark.parametrize("name", list(operation.OPERATIONS))
def test_killed_at_some_calls(
    prepared: Path, tmp_path: Path, name: str, record_property: RecordProperty
) -> None:
    counted = sweep(prepared, tmp_path, name, kills=SAMPLE)
    record_property("measured", f"{name}: killed at {SAMPLE} of {counted} writing calls")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", list(operation.OPERATIONS))
def test_killed_at_every_call(
    prepared: Path, tmp_path: Path, name: str, record_property: RecordProperty
) -> None:
    counted = sweep(prepared, tmp_path, name)
    record_property("measured", f"{name}: killed at each of {counted} writing calls, 0 failures")


def assert_whole(base: Path, where: str) -> None:
    """After a restart: the log verifies, the databases are sound, the bill is the log's."""
    layout = Layout(base)
    with AuditLog.open(layout.audit, layout.audit_key, Config(layout).audit) as log:
        log.recover()
    vkey = (layout.audit_key / "audit.vkey").read_text().strip()
    assert verify(layout.audit, vkey).findings == [], where
    for path in (layout.keys_db, layout.usage_db):
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], where
    events = [event for _, event in read_events(layout.audit)]
    requests = Counter(e.request_id for e in events if isinstance(e, Request))
    responses = Counter(e.request_id for e in events if isinstance(e, Response))
    assert requests == responses, where
    assert set(requests.values()) == {1}, where
    with Meter(layout.usage_db) as meter:
        catch_up(meter, layout.audit)
        settled = list(meter.rows())
        assert {row.request_id for row in settled} == set(responses), where
        rebuild(meter, layout.audit)
        assert list(meter.rows()) == settled, where


def admin_records(base: Path, action: str) -> list[Admin]:
    events = [event for _, event in read_events(Layout(base).audit)]
    return [e for e in events if isinstance(e, Admin) and e.action == action]


def check_revoked(base: Path, acked: bool, where: str) -> None:
    with KeyStore(Layout(base).keys_db) as keys:
        revoked = keys.list()[0].revoked is not None
    records = len(admin_records(base, "keys.revoke"))
    assert records <= revoked, f"recorded and not done: {where}"
    assert records == revoked == 1 or not acked, where
    if not revoked:
        operation.revoke(base)
        assert len(admin_records(base, "keys.revoke")) == 1, where


def check_added(base: Path, acked: bool, where: str) -> None:
    store = operation.models(base).store
    versions = [bundle.version for bundle in store.bundles()]
    records = len(admin_records(base, "models.add"))
    assert versions in (["1", "2"], ["1", "2", "3"]), where
    assert records <= ("3" in versions), f"recorded and not done: {where}"
    assert (records == 1 and "3" in versions) or not acked, where
    assert store.active()["guide"].version == "1", where
    operation.add(base)
    assert [bundle.version for bundle in store.bundles()] == ["1", "2", "3"], where
    store.collect()


def check_activated(base: Path, acked: bool, where: str) -> None:
    store = operation.models(base).store
    active = store.active()["guide"].version
    records = [e for e in admin_records(base, "models.activate") if e.version == "2"]
    assert active == "1" or records, f"done and not recorded: {where}"
    assert active == "2" or not acked, where
    operation.activate(base)
    assert store.active()["guide"].version == "2", where
    assert [b.version for b in store.bundles()] == ["1", "2"], where


def check_settled(base: Path, acked: bool, where: str) -> None:
    events = [event for _, event in read_events(Layout(base).audit)]
    written = sum(isinstance(e, Response) and "settled" in e.request_id for e in events)
    assert written == operation.SETTLED or not acked, where
    with Meter(Layout(base).usage_db) as meter:
        billed = {row.request_id for row in meter.rows()}
    logged = {e.request_id for e in events if isinstance(e, Response)}
    assert billed <= logged, f"billed and not recorded: {where}"
    operation.settle(base, "again")


CHECKS: dict[str, Callable[[Path, bool, str], None]] = {
    "revoke": check_revoked,
    "add": check_added,
    "activate": check_activated,
    "settle": check_settled,
}
