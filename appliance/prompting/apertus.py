"""How Apertus writes tool calls: each an object of one key, the function's name.

<|tools_prefix|>[{"weather": {"city": "Oslo"}}, {"news": {}}]<|tools_suffix|>

The closing tag ends the turn. What they are read with: listed_calls.py.
"""

from __future__ import annotations

import re
from typing import Final

BEGIN, END = "<|tools_prefix|>", "<|tools_suffix|>"
HEAD: Final = re.compile(r'\{\s*("(?:[^"\\]|\\.)*")\s*:\s*(?=\{)', re.DOTALL)
