"""A shim that kills itself at a chosen moment: `python -m tests.fakes.dying_shim ROOT POINT N`.

POINT names one of `POINTS`, a method and whether before or after it, and N which call of it. The
process ends by SIGKILL, so nothing of it runs any more: what is on the disk is all there is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from appliance.audit import AuditWriter
from appliance.config import load_config
from appliance.service import notify_ready
from appliance.shim.batches.batch_store import BatchStore
from appliance.shim.server import serve

POINTS: dict[str, tuple[type, str, bool]] = {
    "before a result is kept": (BatchStore, "keep", False),
    "after a result was kept": (BatchStore, "keep", True),
    "before an error is kept": (BatchStore, "fail", False),
    "after an error was kept": (BatchStore, "fail", True),
    "before a record": (AuditWriter, "record", False),
    "after a record": (AuditWriter, "record", True),
    "before the batch changes": (BatchStore, "update", False),
    "after the batch changed": (BatchStore, "update", True),
    "before the batch ends": (BatchStore, "finish", False),
    "after the batch ended": (BatchStore, "finish", True),
}


def dying(method: Callable[..., Awaitable[Any]], number: int, *, after: bool) -> Any:
    """`method`, whose call `number` is the last thing that this process does."""
    calls = 0

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        last = calls == number
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = await method(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapper


def main() -> None:
    root, point, number = sys.argv[1:]
    owner, name, after = POINTS[point]
    setattr(owner, name, dying(getattr(owner, name), int(number), after=after))
    asyncio.run(serve(load_config(Path(root)), stop=asyncio.Event(), ready=notify_ready))


if __name__ == "__main__":
    main()
