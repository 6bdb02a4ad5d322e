"""Both daemons in the foreground: what systemd does for a system installation.

Owns starting in order, restarting within limits what ended or hangs, and stopping. Refuses to
restart a daemon that keeps failing: the operator must see it. Daemons have sessions of their own,
so Ctrl-C reaches the supervisor alone, which stops them in order; if it is killed, the kernel stops
them (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from appliance.config import Layout
from appliance.errors import ConflictError, LockedError, NotFoundError, UnavailableError
from appliance.fsops import exclusive_lock
from appliance.service import notify_ready, notify_stopping
from installer.readiness import ReadinessSocket

MAX_STARTS = 5
MAX_STARTS_SECONDS = 300.0
RESTART_SECONDS = 2.0
STOP_SECONDS = 60.0
LOCK_NAME = "serve.lock"
_TICK_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_log = logging.getLogger("appliance.serve")


def serve(layout: Layout) -> None:
    """Run both daemons of the node until SIGTERM or SIGINT.

    Raises LockedError if they run already, NotFoundError if nothing is installed here,
    ConflictError on a system installation, UnavailableError if one of them keeps failing.
    """
    if layout.root == Path("/"):
        raise ConflictError(
            "systemd runs the daemons of a system installation",
            hint="`systemctl start appliance.target`, or name a prefix with --root DIR",
        )
    if not layout.python.exists() or not layout.run.is_dir():
        raise NotFoundError(
            f"nothing is installed in {layout.root}", hint="run `appliance install MEDIA` first"
        )
    modules = {"engine": "appliance.engine_daemon", "shim": "appliance.shim"}
    if is_serving(layout):
        raise LockedError(
            f"`appliance serve` runs for {layout.root} already",
            hint="end it with Ctrl-C where it runs; `appliance status` says how it is",
        )
    with exclusive_lock(layout.run / LOCK_NAME):
        Supervisor(
            [
                Daemon(name, [str(layout.python), "-I", "-m", module, "--root", str(layout.root)])
                for name, module in modules.items()
            ]
        ).run()


def is_serving(layout: Layout) -> bool:
    """Whether `serve` runs on this node."""
    if not layout.run.is_dir():
        return False
    try:
        with exclusive_lock(layout.run / LOCK_NAME):
            return False
    except LockedError:
        return True


class Daemon:
    """One process that should run, and what it has told us. Times are monotonic seconds."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.ready = False
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._due = 0.0
        self._starts: deque[float] = deque(maxlen=MAX_STARTS)
        self.notify = ReadinessSocket()

    def attend(self) -> None:
        """Start the process if it should run, and notice what became of it.

        Raises UnavailableError if it has ended too often.
        """
        if self._process is None:
            if time.monotonic() >= self._due:
                self._start()
            return
        status = self._process.poll()
        if status is not None:
            self._ended(status)
        elif self.notify.is_ready() and not self.ready:
            self.ready = True
            _log.info("%s serves", self.name)
        elif self.ready and self.notify.is_overdue:
            _log.error("%s hangs: it is ended", self.name)
            self._process.kill()
            self._ended(self._process.wait())

    def stop(self) -> None:
        """Ask the process to end; end it if it does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _log.warning("%s did not stop within %.0f s: killed", self.name, STOP_SECONDS)
            self._process.kill()
            status = self._process.wait()
        self._process = None
        _log.info("%s stopped (%s)", self.name, _words(status))

    def _start(self) -> None:
        now = time.monotonic()
        if len(self._starts) == MAX_STARTS and now - self._starts[0] < MAX_STARTS_SECONDS:
            raise UnavailableError(
                f"the {self.name} ended {MAX_STARTS} times in {MAX_STARTS_SECONDS:.0f} s",
                hint="read its messages above; `appliance status` says more",
            )
        self._starts.append(now)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.notify.environment},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        _log.info("%s started (process %d)", self.name, self._process.pid)

    def _ended(self, status: int) -> None:
        _log.error("%s ended (%s); it starts again", self.name, _words(status))
        self._process, self.ready = None, False
        self.notify.forget()
        self._due = time.monotonic() + RESTART_SECONDS


class Supervisor:
    """Keeps `daemons` running; each waits until the one before it serves for the first time."""

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        self._daemons = daemons
        self._started: list[Daemon] = []

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises UnavailableError if a daemon keeps failing."""
        told = False
        with _wake_on_signals() as stop, selectors.DefaultSelector() as selector:
            selector.register(stop, selectors.EVENT_READ)
            for daemon in self._daemons:
                selector.register(daemon.notify, selectors.EVENT_READ)
            try:
                while not _is_stop(stop):
                    self._attend()
                    if not told and all(daemon.ready for daemon in self._daemons):
                        told = True
                        notify_ready()
                    selector.select(_TICK_SECONDS)
            finally:
                notify_stopping()
                for daemon in reversed(self._started):
                    daemon.stop()

    def _attend(self) -> None:
        for daemon in self._daemons:
            if daemon not in self._started:
                if any(not before.ready for before in self._started):
                    return
                self._started.append(daemon)
            daemon.attend()


@contextmanager
def _wake_on_signals() -> Iterator[socket.socket]:
    """A socket that becomes readable when the process should stop or a child has ended."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        old = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        before = {number: signal.signal(number, lambda *_: None) for number in handled}
        try:
            yield reader
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old)


def _is_stop(signals: socket.socket) -> bool:
    """Whether one of the signals that came asks to stop; a child's end only wakes the loop."""
    try:
        return any(number != signal.SIGCHLD for number in signals.recv(4096))
    except BlockingIOError:
        return False


def _die_with_parent() -> None:
    """In the child: SIGTERM when the supervisor is gone. prctl(2)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _words(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
