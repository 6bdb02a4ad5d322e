"""The shim daemon: `python -m appliance.shim --root DIR`.

SIGTERM and SIGINT stop it gracefully. Exit statuses are those of the error tree.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from pathlib import Path

import uvloop

from appliance.config import load_config
from appliance.errors import ApplianceError
from appliance.service import PING_SECONDS, notify_alive, notify_ready, notify_stopping
from appliance.shim.server import serve

_log = logging.getLogger("appliance.shim")


def main() -> int:
    """Run until told to stop; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(prog="appliance.shim", description="The HTTP endpoint.")
    parser.add_argument("--root", type=Path, default=Path("/"), help="prefix of the node")
    root = parser.parse_args().root.absolute()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(root))
    except ApplianceError as error:
        _log.error("%s; %s", error.message, error.hint)
        return error.exit_status
    return 0


async def _run(root: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stop)
    alive: list[asyncio.Task[None]] = []

    def ready() -> None:
        # What is there now stays: looking through it for garbage took 36 ms each time.
        gc.freeze()
        notify_ready()
        alive.append(loop.create_task(_tell_alive()))

    await serve(load_config(root), stop=stop, ready=ready)
    for task in alive:
        task.cancel()


async def _tell_alive() -> None:
    """The event loop runs, as long as this does."""
    while True:
        notify_alive()
        await asyncio.sleep(PING_SECONDS)


def _stop(stop: asyncio.Event) -> None:
    notify_stopping()
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
