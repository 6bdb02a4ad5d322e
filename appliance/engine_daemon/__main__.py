"""`python -m appliance.engine_daemon --root DIR`: the engine daemon in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop

from appliance.config import VENV, Layout, default_root, load_config
from appliance.errors import ApplianceError
from appliance.interpreter import engine_python


def main() -> int:
    """Run until SIGTERM or SIGINT. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="appliance.engine_daemon", description=__doc__)
    parser.add_argument("--root", type=Path, default=default_root(), help="root of the node")
    root = parser.parse_args().root
    _go_on_as_chosen(Layout(root))
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(root))
    except ApplianceError as error:
        logging.getLogger("appliance").error("%s; %s", error.message, error.hint)
        return error.exit_status
    return 0


def _go_on_as_chosen(layout: Layout) -> None:
    """Become the release's other interpreter, in the same process, if that one was chosen."""
    prefix = Path(sys.prefix)
    chosen = engine_python(layout, prefix / "bin/python")
    if prefix.name == VENV and chosen.parent.parent != prefix:
        command = [str(chosen), "-I", "-m", "appliance.engine_daemon", *sys.argv[1:]]
        os.execv(chosen, command)  # noqa: S606


async def _run(root: Path) -> None:
    from appliance.engine_daemon.server import serve

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(load_config(root), stop)


if __name__ == "__main__":
    sys.exit(main())
