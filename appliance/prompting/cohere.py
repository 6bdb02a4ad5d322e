"""How Command A, Command R7B and North write tool calls, and what they frame answers with.

<|START_ACTION|>[
    {"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Oslo"}}
]<|END_ACTION|>

What they are read with: listed_calls.py. An answer stands between tags of its own, which are no
part of it; vocabularies do not all say so.
"""

from __future__ import annotations

import re
from typing import Final

BEGIN, END = "<|START_ACTION|>", "<|END_ACTION|>"
FRAME: Final = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
_STRING = r'"(?:[^"\\]|\\.)*"'
HEAD: Final = re.compile(
    rf'\{{\s*(?:"tool_call_id"\s*:\s*{_STRING}\s*,\s*)?"tool_name"\s*:\s*({_STRING})\s*,'
    r'\s*"parameters"\s*:\s*(?=\{)',
    re.DOTALL,
)
