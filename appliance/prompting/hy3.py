"""Reads tool calls in the format of Hunyuan 3: GLM's tagged arguments, in a section of calls.

<tool_calls:opensource>
<tool_call:opensource>weather<tool_sep:opensource>
<arg_key:opensource>city</arg_key:opensource>
<arg_value:opensource>Oslo</arg_value:opensource>
</tool_call:opensource>
</tool_calls:opensource>
"""

from __future__ import annotations

from typing import Final

from appliance.prompting.xml_call import Dialect


def _tag(name: str) -> tuple[str, str]:
    """As the published vocabulary has it."""
    return f"<{name}:opensource>", f"</{name}:opensource>"


SEPARATOR: Final = _tag("tool_sep")[0]
_CALL, _KEY, _VALUE = _tag("tool_call"), _tag("arg_key"), _tag("arg_value")
HY3: Final = Dialect(
    block=_tag("tool_calls"),
    call=_CALL,
    parameter=(_KEY[0], _VALUE[1]),
    name_end=_KEY[1],
    padded=False,
    until=(SEPARATOR, _KEY[0], _CALL[1]),
    value=_VALUE[0],
    marks=(*_CALL, SEPARATOR, *_KEY, *_VALUE),
)
