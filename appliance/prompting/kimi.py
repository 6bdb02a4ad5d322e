"""How Kimi-K2 writes tool calls.

    <|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>
    {"city": "Oslo"}<|tool_call_end|><|tool_calls_section_end|>

What stands in front of the arguments is an id, which names the function and counts the calls. What
they are read with: sectioned_calls.py.
"""

from __future__ import annotations

import re
from typing import Final

from appliance.prompting.sectioned_calls import Section

BEGIN, END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENTS = "<|tool_call_argument_begin|>"
TAGS: Final = (BEGIN, CALL_BEGIN, ARGUMENTS, CALL_END, END)
_HEAD = re.compile(
    rf"\s*(?:functions\.)?([^\s<]{{1,512}}?)(?::[0-9]+)?\s*{re.escape(ARGUMENTS)}\s*(?=\{{)"
)
SECTION: Final = Section(BEGIN, END, CALL_BEGIN, CALL_END, _HEAD)


def call_id(name: str, index: int) -> str:
    """What a call is known by."""
    return f"functions.{name}:{index}"
