"""The process in which a grammar is compiled for the first time, so that it may fail there.

Usage: python trial_worker.py. One JSON line in, one JSON line out: {"grammar": ..., "limits":
{...}} gives {"error": "", "seconds": 0.01}, error being what is wrong with it, seconds what it cost
of processor time. Imports nothing of the appliance: started by its path, it is up at once. Each
job has its own limit of processor time; memory is limited for all of them. A job that exceeds a
limit takes this process along, and no other.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from contextlib import suppress

import llguidance

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 1
"""Of one job; counted in whole seconds, it may become nearly two."""
NICENESS = 10
"""Beside the model's threads: a tenth of their share where there is not enough for all."""


def main() -> None:
    give_way()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Its tokens are the bytes: what a grammar costs to compile does not depend on the vocabulary.
    tokenizer = llguidance.LLTokenizer("byte")
    for line in sys.stdin:
        job = json.loads(line)
        began = time.process_time()
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(began) + 1 + CPU_SECONDS, hard))
        error = _try(tokenizer, job)
        answer = {"error": error, "seconds": time.process_time() - began}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def give_way(thread: int = 0) -> None:
    """Lower this thread's, or another's, share of a processor that others want as well.

    Where a sandbox does not allow it the share stays as it is: grammars are compiled all the same.
    """
    lowest = max(os.getpriority(os.PRIO_PROCESS, thread), NICENESS)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, thread, lowest)


def _try(tokenizer: llguidance.LLTokenizer, job: dict[str, object]) -> str:
    grammar, limits = job["grammar"], job["limits"]
    assert isinstance(grammar, str)
    assert isinstance(limits, dict)
    matcher = llguidance.LLMatcher(
        tokenizer, grammar, log_level=0, limits=llguidance.LLParserLimits(**limits)
    )
    if not matcher.is_error():
        matcher.compute_bitmask()  # some work is put off until here
    # Short enough to fit into a pipe at once; the rest is the state of the parser.
    return matcher.get_error()[:1000] if matcher.is_error() else ""


if __name__ == "__main__":
    main()
