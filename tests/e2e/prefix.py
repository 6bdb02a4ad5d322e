"""A node in a prefix: installed from media by the media's own program, served in the foreground."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.config import Layout
from installer.readiness import ReadinessSocket
from tests.conftest import BuildOnce
from tests.e2e.egress import strace, untraceable
from tests.fakes.node_media import NodeMedia
from tests.fakes.ports import own_port

START_SECONDS = 240
STOP_SECONDS = 180
CLEAN = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Prefix:
    """One installation below `root`, whose endpoint listens on `port`."""

    root: Path
    port: int

    @property
    def command(self) -> Path:
        return self.root / "opt/appliance/current/venv/bin/appliance"

    def install_command(self, media: NodeMedia) -> list[str]:
        """What an operator types."""
        return [
            *(sys.executable, str(media.pyz), "install", str(media.media)),
            *("--root", str(self.root), "--json"),
        ]

    def install(self, media: NodeMedia, *wrapper: str) -> dict[str, Any]:
        """Install to the end, run by `wrapper` if there is one; the result document."""
        command = [*wrapper, *self.install_command(media)]
        done = subprocess.run(command, capture_output=True, text=True, env=CLEAN)
        assert done.returncode == 0, done.stdout + done.stderr
        document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert document["event"] == "result"
        return document

    def run(self, *arguments: str) -> Any:
        """An `appliance` command with --json; its document."""
        done = subprocess.run(
            [self.command, *arguments, "--root", self.root, "--json"],
            capture_output=True,
            text=True,
            env=CLEAN,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def serving(self, *wrapper: str, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """`appliance serve`, run by `wrapper` if there is one, until the end of the block."""
        readiness = ReadinessSocket()
        log = log or self.root / "serve.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*wrapper, self.command, "serve", "--root", self.root],
                stdout=output,
                stderr=output,
                env=CLEAN | readiness.environment,
            )
        try:
            ready = readiness.wait(START_SECONDS, until=lambda: process.poll() is not None)
            assert ready, log.read_text()
            yield process
        finally:
            readiness.close()
            os.kill(_inner(process, wrapped=bool(wrapper)), signal.SIGTERM)
            process.wait(STOP_SECONDS)

    def post(self, path: str, key: str, document: dict[str, object]) -> dict[str, Any]:
        """The answer to one API request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        connection.request("POST", path, json.dumps(document), headers)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        assert response.status == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    def chat(self, key: str, model: str, *, tokens: int = 8) -> str:
        """One short answer."""
        answer = self.post(
            "/v1/chat/completions",
            key,
            {
                "model": model,
                "messages": [{"role": "user", "content": "hello"}],
                "max_tokens": tokens,
                "temperature": 0,
            },
        )
        assert answer["usage"]["completion_tokens"] > 0
        text: str = answer["choices"][0]["message"]["content"]
        return text

    def embed(self, key: str, model: str, text: str) -> Sequence[float]:
        """One embedding."""
        answer = self.post(
            "/v1/embeddings", key, {"model": model, "input": text, "encoding_format": "float"}
        )
        embedding: Sequence[float] = answer["data"][0]["embedding"]
        return embedding


def _inner(process: subprocess.Popen[bytes], *, wrapped: bool) -> int:
    """The supervisor's process: a tracer does not pass signals on."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(children.read_text().split()[0]) if wrapped else process.pid


def new_prefix(root: Path) -> Prefix:
    """An empty prefix with a port of its own."""
    port = own_port()
    settings = root / "etc/appliance/appliance.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[api]\nlisten_port = {port}\n")
    return Prefix(root, port)


@dataclass(frozen=True, slots=True)
class Installed:
    """An installation from nothing, made once in this test run: to look at, to take programs from.

    `root` is where it was made, which is not where it is now; `seconds` is how long it took.
    """

    directory: Path
    root: str
    port: int
    seconds: float

    @property
    def log(self) -> Path:
        """What strace saw of it; absent where nothing can be traced."""
        return self.directory / "install.log"

    def lend_programs(self, prefix: Prefix) -> Prefix:
        """Put its release into `prefix`, so that the next `install` there finds it staged.

        The files are links to the same bytes, which nobody changes in place. Only the scripts of a
        virtual environment name its place: they are written anew.
        """
        for release in Layout(self.directory / "n").releases.iterdir():
            own = Layout(prefix.root).releases / release.name
            shutil.copytree(release, own, symlinks=True, copy_function=os.link)
            for script in (own / "venv/bin").iterdir():
                if not script.is_symlink():
                    _move(script, os.fsencode(self.root), bytes(prefix.root))
        return prefix


def _move(script: Path, before: bytes, now: bytes) -> None:
    """Let `script` name the interpreter below `now` instead of the one below `before`."""
    data, mode = script.read_bytes(), script.stat().st_mode
    script.unlink()
    script.write_bytes(data.replace(before, now))
    script.chmod(mode)


def installed(build_once: BuildOnce, media: NodeMedia) -> Installed:
    """The installation of this test run."""

    def build(directory: Path) -> None:
        wrapper = [] if untraceable() else strace(directory / "install.log")
        prefix, begin = new_prefix(directory / "n"), time.monotonic()
        prefix.install(media, *wrapper)
        seconds = time.monotonic() - begin
        about = {"root": str(prefix.root), "port": prefix.port, "seconds": seconds}
        (directory / "about.json").write_text(json.dumps(about))

    directory = build_once("installed", build)
    return Installed(directory, **json.loads((directory / "about.json").read_text()))
