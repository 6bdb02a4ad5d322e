"""The process that renders one chat template: `python -m appliance.prompting.worker`.

A template is a program from outside, and a sandbox cannot stop its loops. So it runs here, with
a bounded address space, no open files but its two pipes, and a parent that kills it when it
takes too long. Standard input and output carry length-prefixed JSON: first the template, then
one set of variables for each rendering. Ends when its parent does.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from typing import Any, BinaryIO

from jinja2 import Template
from jinja2.exceptions import TemplateError

from appliance.prompting.environment import compile_template, render

MAX_MEMORY_BYTES = 1 << 30
HEADER = struct.Struct(">I")


def main() -> None:
    """Serve one template until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    setup = _read(source)
    if setup is None:
        return
    try:
        template = compile_template(setup["template"])
    except (TemplateError, RecursionError) as error:
        _write(sink, {"error": str(error)})
        return
    _write(sink, {"text": ""})
    while (variables := _read(source)) is not None:
        _write(sink, _answer(template, variables, setup["max_chars"]))


def _answer(template: Template, variables: dict[str, object], max_chars: int) -> dict[str, str]:
    try:
        return {"text": render(template, variables, max_chars)}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it recurses too deeply"}
    except Exception as error:
        # Whatever a template does wrong with the given messages is an answer, not a crash.
        return {"error": str(error) or type(error).__name__}


def _read(source: BinaryIO) -> dict[str, Any] | None:
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    message: dict[str, Any] = json.loads(source.read(HEADER.unpack(header)[0]))
    return message


def _write(sink: BinaryIO, answer: dict[str, str]) -> None:
    data = json.dumps(answer).encode("ascii")
    sink.write(HEADER.pack(len(data)) + data)
    sink.flush()


if __name__ == "__main__":
    main()
