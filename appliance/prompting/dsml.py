"""Reads tool calls in the format of DeepSeek-V3.2, and of V4, whose block is called tool_calls.

<|DSML|function_calls>
<|DSML|invoke name="weather">
<|DSML|parameter name="city" string="true">Oslo</|DSML|parameter>
<|DSML|parameter name="days" string="false">3</|DSML|parameter>
</|DSML|invoke>
</|DSML|function_calls>

The bars are of their own, U+FF5C, and what stands in each tag with them is a token. A parameter
says itself whether it is text or JSON.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from appliance.prompting.xml_call import Dialect

MARK: Final = "\uff5cDSML\uff5c"
DSML: Final = Dialect(
    block=(f"<{MARK}function_calls>", f"</{MARK}function_calls>"),
    call=(f'<{MARK}invoke name="', f"</{MARK}invoke>"),
    parameter=(f'<{MARK}parameter name="', f"</{MARK}parameter>"),
    name_end='">',
    padded=False,
    kinds=('" string="true">', '" string="false">'),
    marks=(MARK,),
)
DSML_V4: Final = replace(DSML, block=(f"<{MARK}tool_calls>", f"</{MARK}tool_calls>"))
