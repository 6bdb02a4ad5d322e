"""How Granite 3 writes tool calls: a list of JSON objects behind a tag that nothing closes.

<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": ...}]

What they are read with: mistral.py, whose first format differs in the tag.
"""

from __future__ import annotations

from typing import Final

BEGIN: Final = "<|tool_call|>"
