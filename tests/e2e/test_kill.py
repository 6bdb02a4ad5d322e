"""`kill -9` of the installer at random moments: run again, it finishes, and nothing is half-done.

The moments are spread at random over the time that an undisturbed installation takes. Some
start from nothing; the others keep the staged programs, so that they fall into the second half.
A quick run kills a few times; `scripts/test --full` twenty times.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.access import KeyStore
from appliance.bundle.verify import verify_contents, verify_metadata
from appliance.compiler import open_artifact
from appliance.config import Layout
from appliance.model_store import ModelStore
from appliance.trust.node_key import PUBLIC_NAME, NodePublicKey
from appliance.trust.store import TrustStore
from tests.e2e.prefix import CLEAN, Installed, Prefix, new_prefix
from tests.fakes.node_media import CHAT, EMBEDDING, NodeMedia

FULL = os.environ.get("APPLIANCE_TEST_FULL") == "1"
FROM_NOTHING, FROM_STAGED = (8, 12) if FULL else (1, 1)
SEED_VARIABLE = "APPLIANCE_TEST_SEED"


@pytest.mark.timeout(3600)
def test_an_installer_killed_at_any_moment_and_run_again_finishes(
    tmp_path: Path,
    node_media: NodeMedia,
    installed: Installed,
    record_property: Callable[[str, object], None],
) -> None:
    seed = int(os.environ.get(SEED_VARIABLE, random.SystemRandom().randrange(1 << 32)))
    moments = random.Random(seed)
    prefix = new_prefix(tmp_path / "n")
    for keep_programs, kills in ((False, FROM_NOTHING), (True, FROM_STAGED)):
        whole = _seconds(prefix, node_media) if keep_programs else installed.seconds
        while kills:
            _reset(prefix, keep_programs=keep_programs)
            run = _killed_after(moments.uniform(0, whole), prefix, node_media)
            if not run.was_killed:  # the machine has become faster
                whole = run.seconds
                continue
            kills -= 1
            where = f"{run.seconds:.2f} of {whole:.2f} s, {run.last_step!r}, seed {seed}"
            record_property("measured", f"installer killed after {where}")
            _finishes(prefix, node_media, run, where)
    total = FROM_NOTHING + FROM_STAGED
    record_property("measured", f"{total} kills, each then installed and verified; seed {seed}")


@dataclass(frozen=True, slots=True)
class KilledRun:
    """An installation that was not let finish, and what it had said.

    `seconds` is how long it ran.
    """

    seconds: float
    was_killed: bool
    events: tuple[dict[str, Any], ...]

    @property
    def last_step(self) -> str:
        """Where it died."""
        titles = [e["title"] for e in self.events if e["event"] == "step"]
        return titles[-1] if titles else "before the first step"

    @property
    def showed_a_key(self) -> bool:
        """Whether the operator saw the first key before the end."""
        return any(e["event"] == "result" and e["api_key"] for e in self.events)


def _seconds(prefix: Prefix, media: NodeMedia) -> float:
    """How long an undisturbed installation takes where the programs are staged."""
    _reset(prefix, keep_programs=True)
    begin = time.monotonic()
    prefix.install(media)
    return time.monotonic() - begin


def _killed_after(seconds: float, prefix: Prefix, media: NodeMedia) -> KilledRun:
    process = subprocess.Popen(
        prefix.install_command(media),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=CLEAN,
        start_new_session=True,
    )
    begin = time.monotonic()
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lines.extend, args=(process.stdout,))
    reader.start()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    took = time.monotonic() - begin
    reader.join()
    process.stdout.close()
    events = tuple(json.loads(line) for line in lines if line.endswith("\n"))
    return KilledRun(took, status == -signal.SIGKILL, events)


def _finishes(prefix: Prefix, media: NodeMedia, killed: KilledRun, where: str) -> None:
    """Run the installer again and check everything that it leaves."""
    result = prefix.install(media)
    layout = Layout(prefix.root)
    assert result["proof"]["tokens"] > 0, where
    assert result["models"] == {CHAT: "1.0", EMBEDDING: "1.0"}, where
    assert killed.showed_a_key or result["api_key"], f"no key was ever shown: {where}"
    if result["api_key"]:
        with KeyStore(layout.keys_db) as keys:
            assert keys.authenticate(result["api_key"]) is not None, where
    signers = TrustStore(layout.trust).signers()
    node_key = NodePublicKey.load(layout.node / PUBLIC_NAME)
    for bundle in ModelStore(layout.models).active().values():
        verify_contents(verify_metadata(bundle.directory, signers))
        open_artifact(layout.artifacts, bundle.digest, node_key)
    assert prefix.run("audit", "verify"), where
    leftovers = [layout.install_state / "staging", layout.install_state / "first-key.json"]
    assert [path for path in leftovers if path.exists()] == [], where


def _reset(prefix: Prefix, *, keep_programs: bool) -> None:
    """A bare prefix again, at the same place: a virtual environment cannot be moved."""
    for name in ("var", "run", "opt/appliance/current", *(() if keep_programs else ("opt",))):
        path = prefix.root / name
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
