"""Reads tool calls in the format of Qwen3-Coder.

<tool_call>
<function=weather>
<parameter=city>
Oslo
</parameter>
</function>
</tool_call>
"""

from __future__ import annotations

from typing import Final

from appliance.prompting.xml_call import Dialect

QWEN_CODER: Final = Dialect(
    block=("<tool_call>", "</tool_call>"),
    call=("<function=", "</function>"),
    parameter=("<parameter=", "</parameter>"),
    name_end=">",
    padded=True,
)
