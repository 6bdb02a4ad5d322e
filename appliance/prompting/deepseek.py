"""How DeepSeek's models up to V3.1 write tool calls.

    <|calls begin|><|call begin|>function<|sep|>weather     V3, R1
    ```json
    {"city": "Oslo"}
    ```<|call end|><|calls end|>

    <|calls begin|><|call begin|>weather<|sep|>{"city": "Oslo"}<|call end|><|calls end|>   V3.1

The tags' bars and spaces are of their own: U+FF5C and U+2581. What they are read with:
sectioned_calls.py.
"""

from __future__ import annotations

import re
from typing import Final

from appliance.prompting.sectioned_calls import Section

CALLS_BEGIN = "<\uff5ctool\u2581calls\u2581begin\uff5c>"
CALLS_END = "<\uff5ctool\u2581calls\u2581end\uff5c>"
CALL_BEGIN = "<\uff5ctool\u2581call\u2581begin\uff5c>"
CALL_END = "<\uff5ctool\u2581call\u2581end\uff5c>"
SEPARATOR = "<\uff5ctool\u2581sep\uff5c>"
TAGS = (CALLS_BEGIN, CALL_BEGIN, SEPARATOR, CALL_END, CALLS_END)
_HEAD = re.compile(
    rf"\s*([^\n<]*)(?:{SEPARATOR})(?:([^\n<{{`]+)\s*```(?:json)?)?\s*(?=\{{)",
)
SECTION: Final = Section(CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, _HEAD)
