"""A server of one tool, `look`, in the Model Context Protocol over standard input and output."""

from __future__ import annotations

import json
import sys
from typing import Any

LOOK = {
    "name": "look",
    "description": "Look up a note.",
    "inputSchema": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "notes", "version": "1"},
        }
    if method == "tools/list":
        return {"tools": [LOOK]}
    if method == "tools/call":
        place = params["arguments"]["at"]
        return {"content": [{"type": "text", "text": f"the note at {place}"}]}
    return {}


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" in asked:
            result = answer(asked["method"], asked.get("params", {}))
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}))
            sys.stdout.write("\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
