"""The processes that are measured, each on the processors that it is given, and what they cost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from appliance.access import KeyStore
from appliance.audit import create_signer
from appliance.config import Layout
from installer.readiness import ReadinessSocket
from tests.fakes.ports import own_port

_TICKS = os.sysconf("SC_CLK_TCK")


class Daemon:
    """A running process of ours."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    @property
    def processor_seconds(self) -> float:
        """What all of its threads have used; in steps of a tick, 10 ms."""
        text = Path(f"/proc/{self.pid}/stat").read_text("ascii")
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def answer(self, line: str) -> str:
        """What it says on its standard output to `line` on its standard input."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(line.encode() + b"\n")
        stdin.flush()
        return stdout.readline().decode()


@contextmanager
def daemon(
    module: str,
    *arguments: str | Path,
    processors: Sequence[int],
    errors: Path,
    answers: bool = False,
) -> Iterator[Daemon]:
    """`python -m module arguments`, ready, on `processors`; what it says goes to `errors`.

    `answers`: it reads lines and answers each.
    """
    pipe = subprocess.PIPE if answers else None
    readiness = ReadinessSocket()
    with errors.open("wb") as file:
        process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, processors)), sys.executable, "-m", module]
            + [str(argument) for argument in arguments],
            env=os.environ | readiness.environment,
            stdin=pipe,
            stdout=pipe,
            stderr=file,
        )
    try:
        if not readiness.wait(120, until=lambda: process.poll() is not None):
            raise RuntimeError(f"{module} does not start: {errors.read_text()}")
        yield Daemon(process)
    finally:
        process.terminate()
        process.wait()
        readiness.close()


def prepare(root: Path, settings: str = "") -> tuple[int, str]:
    """The files that an installation leaves for the shim, unless they are there; its port and a
    key's secret. `settings` are further lines of the configuration."""
    layout = Layout(root)
    for directory in (layout.audit, layout.access, layout.metering, layout.responses, layout.run):
        directory.mkdir(parents=True, exist_ok=True)
    if not any(layout.audit.iterdir()):
        create_signer(layout.audit_key, "bench")
    with KeyStore(layout.keys_db) as keys:
        _, secret = keys.create("bench")
    port = own_port()
    layout.config_file.parent.mkdir(parents=True, exist_ok=True)
    layout.config_file.write_text(f"[api]\nlisten_port = {port}\n{settings}")
    return port, secret
