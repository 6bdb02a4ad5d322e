"""The tests' engine as a process: the whole protocol, and nothing to compute.

Its arguments are the socket and how many events it puts into one message.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from appliance.service import notify_ready
from tests.fakes.engine import FakeEngine


def main() -> None:
    with FakeEngine(Path(sys.argv[1])) as engine:
        engine.behaviour.together = int(sys.argv[2])
        notify_ready()
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
