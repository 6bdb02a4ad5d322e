"""Both daemons under the installer's own supervisor, from this checkout: `ROOT` is the argument.

What ends or hangs is started again as on a node, within the same limits.
"""

from __future__ import annotations

import logging
import sys

from installer.supervise import Daemon, Supervisor

MODULES = {"engine": "appliance.engine_daemon", "shim": "appliance.shim"}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    root = sys.argv[1]
    Supervisor(
        [
            Daemon(name, [sys.executable, "-m", module, "--root", root])
            for name, module in MODULES.items()
        ]
    ).run()


if __name__ == "__main__":
    main()
