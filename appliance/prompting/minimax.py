"""Reads tool calls in the format of MiniMax-M2.

<minimax:tool_call>
<invoke name="weather">
<parameter name="city">Oslo</parameter>
</invoke>
</minimax:tool_call>
"""

from __future__ import annotations

from typing import Final

from appliance.prompting.xml_call import Dialect

MINIMAX: Final = Dialect(
    block=("<minimax:tool_call>", "</minimax:tool_call>"),
    call=('<invoke name="', "</invoke>"),
    parameter=('<parameter name="', "</parameter>"),
    name_end='">',
    padded=False,
)
