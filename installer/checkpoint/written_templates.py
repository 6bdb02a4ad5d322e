"""Chat templates of models whose publishers tell by a program, not by a template, how messages
become a prompt.

Owns what those programs write, said as a template; none is taken from elsewhere. A checkpoint that
has a template is left its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from appliance.prompting.dsml import DSML, DSML_V4, MARK

_BLOCK, _CALL, _PARAMETER = DSML.block, DSML.call, DSML.parameter
_TOOLS: Final = f"""\
## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "{_BLOCK[0]}" block like the following as part of your reply \
to the user:
{_BLOCK[0]}
{_CALL[0]}$FUNCTION_NAME">
{_PARAMETER[0]}$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE{_PARAMETER[1]}
...
{_CALL[1]}
{_CALL[0]}$FUNCTION_NAME2">
...
{_CALL[1]}
{_BLOCK[1]}

String and scalar parameters should be specified as is without any escaping or quotes, while lists \
and objects should use JSON format. The "string" attribute should be set to "true" for string type \
parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider \
outputting a thinking block. Here is an example:

{_BLOCK[0]}
...
{_BLOCK[1]}

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
"""
"""The words that DeepSeek-V3.2 was trained with."""

_TOOLS_V4: Final = f"""\
## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by \
writing a "{DSML_V4.block[0]}" block like the following:

{DSML_V4.block[0]}
{_CALL[0]}$TOOL_NAME">
{_PARAMETER[0]}$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE{_PARAMETER[1]}
...
{_CALL[1]}
{_CALL[0]}$TOOL_NAME2">
...
{_CALL[1]}
{DSML_V4.block[1]}

String parameters should be specified as is and set `string="true"`. For all other types (numbers, \
booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside \
<think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

"""
_STRICTLY_V4: Final = """
You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""
"""The same of DeepSeek-V4: in front of the tools, and behind them."""

_CALLED: Final = """\
{%- macro called(function) -%}
{{- '\\n<<MARK>invoke name="' + function.name + '">\\n' -}}
{%- for key, value in function.arguments.items() -%}
{{- '<<MARK>parameter name="' + key + '" string="' -}}
{{- 'true">' + value if value is string else 'false">' + value | tojson -}}
{{- '</<MARK>parameter>' -}}
{{- '\\n' if not loop.last -}}
{%- endfor -%}
{{- '\\n</<MARK>invoke>' -}}
{%- endmacro -%}
"""
"""A call, in both."""

_DEEPSEEK_V32: Final = """\
{%- macro opened(index) -%}
{{- '<think>' if thinking and index >= last.user else '</think>' -}}
{%- endmacro -%}
{%- macro offered() -%}
{{- '\\n\\n' + <TOOLS> -}}
{%- for tool in tools -%}{{- tool.function | tojson + '\\n' -}}{%- endfor -%}
{{- '</functions>\\n' -}}
{%- endmacro -%}
<CALLED>{%- set thinking = thinking | default(enable_thinking | default(false)) -%}
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- if tools and messages[0].role != 'system' -%}{{- offered() -}}{%- endif -%}
{%- for message in messages -%}
{%- set content = message.content or '' -%}
{%- if message.role == 'system' -%}
{{- content -}}
{%- if tools and loop.first -%}{{- offered() -}}{%- endif -%}
{%- elif message.role == 'user' -%}
{{- '<\uff5cUser\uff5c>' + content + '<\uff5cAssistant\uff5c>' + opened(loop.index0) -}}
{%- elif message.role == 'tool' -%}
{%- if loop.previtem is not defined or loop.previtem.role != 'tool' -%}
{{- '\\n\\n<function_results>' -}}
{%- endif -%}
{{- '\\n<result>' + content + '</result>' -}}
{%- if loop.nextitem is not defined or loop.nextitem.role != 'tool' -%}
{{- '\\n</function_results>\\n\\n' + opened(loop.index0) -}}
{%- endif -%}
{%- elif message.role == 'assistant' -%}
{%- if thinking and loop.index0 > last.user -%}
{{- (message.reasoning_content or '') + '</think>' -}}
{%- endif -%}
{{- content -}}
{%- if message.tool_calls -%}
{{- '\\n\\n<<MARK>function_calls>' -}}
{%- for call in message.tool_calls -%}{{- called(call.function) -}}{%- endfor -%}
{{- '\\n</<MARK>function_calls>' -}}
{%- endif -%}
{{- '<\uff5cend\u2581of\u2581sentence\uff5c>' -}}
{%- endif -%}
{%- endfor -%}
"""

_DEEPSEEK_V4: Final = """\
{%- macro opened(index) -%}
{{- '<think>' if thinking and (tools or index >= last.asked) else '</think>' -}}
{%- endmacro -%}
{%- macro offered() -%}
{{- '\\n\\n' + <TOOLS> -}}
{%- for tool in tools -%}{{- tool.function | tojson + '\\n' -}}{%- endfor -%}
{{- <STRICTLY> -}}
{%- endmacro -%}
<CALLED>{%- set thinking = thinking | default(enable_thinking | default(false)) -%}
{%- set asking = ['user', 'tool'] -%}
{%- set last = namespace(asked=-1) -%}
{%- for message in messages -%}
{%- if message.role in asking -%}{%- set last.asked = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- if tools and messages[0].role != 'system' -%}{{- offered() -}}{%- endif -%}
{%- for message in messages -%}
{%- set content = message.content or '' -%}
{%- if message.role == 'system' -%}
{{- content -}}
{%- if tools and loop.first -%}{{- offered() -}}{%- endif -%}
{%- elif message.role in asking -%}
{%- set follows = loop.previtem is defined and loop.previtem.role in asking -%}
{{- '\\n\\n' if follows else '<\uff5cUser\uff5c>' -}}
{{- content if message.role == 'user' else '<tool_result>' + content + '</tool_result>' -}}
{%- if loop.nextitem is not defined or loop.nextitem.role == 'assistant' -%}
{{- '<\uff5cAssistant\uff5c>' + opened(loop.index0) -}}
{%- endif -%}
{%- elif message.role == 'assistant' -%}
{%- if thinking and (tools or loop.index0 > last.asked) -%}
{{- (message.reasoning_content or '') + '</think>' -}}
{%- endif -%}
{{- content -}}
{%- if message.tool_calls -%}
{{- '\\n\\n<<MARK>tool_calls>' -}}
{%- for call in message.tool_calls -%}{{- called(call.function) -}}{%- endfor -%}
{{- '\\n</<MARK>tool_calls>' -}}
{%- endif -%}
{{- '<\uff5cend\u2581of\u2581sentence\uff5c>' -}}
{%- endif -%}
{%- endfor -%}
"""
"""Questions and results between two answers are one turn. With tools, thoughts are kept."""


def _quoted(text: str) -> str:
    """As a text of the template language."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _filled(template: str, tools: str, strictly: str = "") -> str:
    filled = template.replace("<CALLED>", _CALLED).replace("<TOOLS>", _quoted(tools))
    return filled.replace("<STRICTLY>", _quoted(strictly)).replace("<MARK>", MARK)


WRITTEN: Final[Mapping[str, str]] = {
    "deepseek_v32": _filled(_DEEPSEEK_V32, _TOOLS),
    "deepseek_v4": _filled(_DEEPSEEK_V4, _TOOLS_V4, _STRICTLY_V4),
}
"""`model_type` -> its template. DeepSeek's programs are MIT-licensed, as its weights are."""
