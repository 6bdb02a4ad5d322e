"""Reads tool calls in the format of GLM-4.5 and 4.6; of GLM-4.7 without the line ends.

<tool_call>weather
<arg_key>city</arg_key>
<arg_value>Oslo</arg_value>
</tool_call>
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from appliance.prompting.xml_call import Dialect

_BLOCK: Final = ("<tool_call>", "</tool_call>")
GLM: Final = Dialect(
    block=_BLOCK,
    call=_BLOCK,
    parameter=("<arg_key>", "</arg_value>"),
    name_end="</arg_key>",
    padded=False,
    until=("<arg_key>", _BLOCK[1]),
    value="<arg_value>",
    marks=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
GLM_47: Final = replace(GLM, line="")
