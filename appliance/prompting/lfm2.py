"""How LFM2 writes tool calls: a list as Python would write it, between two tags.

<|tool_call_start|>[weather(city="Oslo"), clock()]<|tool_call_end|>

What they are read with: pythonic.py.
"""

from __future__ import annotations

from typing import Final

BEGIN, END = "<|tool_call_start|>", "<|tool_call_end|>"
TAGS: Final = (BEGIN, END)
