"""Reads tool calls in the format of Seed-OSS.

<seed:tool_call>
<function=weather>
<parameter=city>Oslo</parameter>
</function>
</seed:tool_call>
"""

from __future__ import annotations

from typing import Final

from appliance.prompting.xml_call import Dialect

SEED_OSS: Final = Dialect(
    block=("<seed:tool_call>", "</seed:tool_call>"),
    call=("<function=", "</function>"),
    parameter=("<parameter=", "</parameter>"),
    name_end=">",
    padded=False,
)
