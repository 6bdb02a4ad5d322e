"""Chat templates that write each format of tool calls, in few words of our own.

Owns no publisher's text: the shapes of the tags are theirs, and these templates show what the
parsers and the builder have to know of them. `speak` gives a checkpoint one, and the tags of
all of them as special tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer

from appliance.bundle.specs import ToolFormat
from appliance.prompting import dsml, granite, kimi, lfm2
from appliance.prompting.formats import FORMATS
from appliance.prompting.hy3 import HY3 as _HY3
from appliance.prompting.minimax_m3 import M3 as _M3
from appliance.prompting.xml_call import Dialect

_TURNS: Final = """\
{{- bos_token -}}
{%- if tools -%}{{- 'TOOLS ' + tools | tojson + '\\n' -}}{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- 'ASSISTANT:' -}}
<THOUGHT>
{{- message.content -}}
{%- if message.tool_calls -%}
<CALLS>
{%- endif -%}
{{- '<END>\\n' -}}
{%- else -%}
{{- message.role | upper + ':' + message.content + '<END>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}<OPENING>{%- endif -%}
"""
_THOUGHT: Final = """\
{%- if message.reasoning_content -%}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
{%- endif -%}
"""
_OPENS: Final = "{{- '<think>\\n' if enable_thinking else '<think>\\n\\n</think>\\n\\n' -}}"


def _template(calls: str, *, end: str, thought: str = "", opening: str = "") -> str:
    text = _TURNS.replace("<CALLS>\n", calls).replace("<THOUGHT>\n", thought)
    return text.replace("<END>", end).replace("<OPENING>", opening)


_EACH: Final = "{%- for call in message.tool_calls -%}{%- set f = call.function -%}\n"
_NEXT: Final = "{%- endfor -%}\n"
_CALLS_BEGIN, _CALL_BEGIN, _SEPARATOR, _CALL_END, _CALLS_END = FORMATS["deepseek"].tags
_EOS: Final = "<\uff5cend\u2581of\u2581sentence\uff5c>"


def _glm(line: str, opening: str) -> str:
    """`line`: what the tags have between them."""
    return _template(
        f"{_EACH}{{{{- '{line}<tool_call>' + f.name + '{line}' -}}}}\n"
        "{%- for key, value in f.arguments.items() -%}\n"
        f"{{{{- '<arg_key>' + key + '</arg_key>{line}<arg_value>' -}}}}\n"
        "{{- value if value is string else value | tojson -}}\n"
        f"{{{{- '</arg_value>{line}' -}}}}\n{{%- endfor -%}}\n{{{{- '</tool_call>' -}}}}\n{_NEXT}",
        end="<|user|>",
        thought="{%- if message.reasoning_content -%}"
        f"{{{{- '{line}<think>' + message.reasoning_content + '</think>{line}' -}}}}"
        "{%- endif -%}\n",
        opening=opening,
    )


def _python(begin: str, end: str) -> str:
    """Calls as Python writes them: `begin` and `end` stand around the list."""
    return (
        "{%- macro value(x) -%}\n"
        '{%- if x is string -%}{{- "\'" + x + "\'" -}}{%- elif x is mapping -%}\n'
        "{{- x | tojson -}}{%- else -%}{{- x -}}{%- endif -%}\n{%- endmacro -%}\n"
        f"{{{{- '{begin}[' -}}}}\n{_EACH}{{{{- f.name + '(' -}}}}\n"
        "{%- for key, inner in f.arguments.items() -%}{{- ', ' if not loop.first -}}\n"
        "{{- key + '=' -}}{{- value(inner) -}}{%- endfor -%}\n"
        f"{{{{- ')' -}}}}{{{{- ', ' if not loop.last -}}}}\n{_NEXT}{{{{- ']{end}' -}}}}\n"
    )


def _in_dsml(dialect: Dialect) -> str:
    return _template(
        f"{{{{- '\\n\\n{dialect.block[0]}\\n' -}}}}\n{_EACH}"
        f"{{{{- '{dialect.call[0]}' + f.name + '\">\\n' -}}}}\n"
        "{%- for key, value in f.arguments.items() -%}\n"
        f"{{{{- '{dialect.parameter[0]}' + key + '\" string=\"' -}}}}\n"
        "{{- 'true\">' + value if value is string else 'false\">' + value | tojson -}}\n"
        f"{{{{- '{dialect.parameter[1]}\\n' -}}}}\n{{%- endfor -%}}\n"
        f"{{{{- '{dialect.call[1]}\\n' -}}}}\n{_NEXT}{{{{- '{dialect.block[1]}' -}}}}\n",
        end=_EOS,
        thought=_THOUGHT,
        opening="{{- '<think>' if thinking else '</think>' -}}",
    )


HARMONY: Final = """\
{{- '<|start|>system<|message|>Today ' + strftime_now('%Y-%m-%d') + '. Effort ' -}}
{{- reasoning_effort | default('medium') + '. Channels: analysis, commentary, final.<|end|>' -}}
{%- if tools or messages[0].role == 'system' -%}
{{- '<|start|>developer<|message|>' -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content -}}{%- endif -%}
{%- for tool in tools or [] -%}{{- '\\n' + tool.function | tojson -}}{%- endfor -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- '<|start|>user<|message|>' + message.content + '<|end|>' -}}
{%- elif message.role == 'tool' -%}
{{- '<|start|>functions to=assistant<|channel|>commentary<|message|>' + message.content -}}
{{- '<|end|>' -}}
{%- elif message.role == 'assistant' -%}
{%- if message.thinking -%}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' -}}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{{- '<|start|>assistant to=functions.' + call.function.name + '<|channel|>commentary json' -}}
{{- '<|message|>' + call.function.arguments | tojson + '<|call|>' -}}
{%- endfor -%}
{%- if not message.tool_calls -%}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content -}}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""

MUSE: Final = """\
{{- bos_token + '<|start|>system<|message|>' -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content -}}{%- endif -%}
{{- '\\n\\nReasoning strength: ' + (reasoning_strength or 'high') + '.' -}}
{%- for tool in tools or [] -%}{{- '\\n' + tool.function | tojson -}}{%- endfor -%}
{{- '<|eot|>' -}}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- '<|start|>user<|message|>' + message.content + '<|eot|>' -}}
{%- elif message.role == 'tool' -%}
{{- '<|start|>tool<|message|><tool_output>\\n' + message.content + '\\n</tool_output><|eot|>' -}}
{%- elif message.role == 'assistant' -%}
{%- if message.reasoning_content -%}
{{- '<|start|>assistant to=self<|message|>' + message.reasoning_content + '<|eom|>' -}}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}{%- set f = call.function -%}
{{- '<|start|>assistant to=' + f.name + '<|message|><atem:function_calls>\\n' -}}
{{- '<atem:invoke name="' + f.name + '">\\n' -}}
{%- for name, value in f.arguments.items() -%}
{{- '<atem:parameter name="' + name + '">' -}}
{{- value if value is string else value | tojson -}}{{- '</atem:parameter>\\n' -}}
{%- endfor -%}
{{- '</atem:invoke>\\n</atem:function_calls>' + ('<|eot|>' if loop.last else '<|eom|>') -}}
{%- endfor -%}
{%- if message.content -%}
{{- '<|start|>assistant to=user<|message|>' + message.content + '<|eot|>' -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""

TEMPLATES: Final[dict[ToolFormat, str]] = {
    "llama": _template(
        "{%- set f = message.tool_calls[0].function -%}\n"
        "{{- '{\"name\": ' + f.name | tojson + ', \"parameters\": ' -}}\n"
        "{{- f.arguments | tojson + '}' -}}\n",
        end="<|eot_id|>",
    ),
    "llama4": _template(
        f"{{{{- '<|python_start|><|python_end|>' -}}}}\n{_EACH}"
        "{{- '{\"name\": \"' + f.name + '\", \"parameters\": ' + f.arguments | tojson + '}' -}}\n"
        f"{_NEXT}",
        end="<|eot|>",
    ),
    "deepseek": _template(
        f"{{{{- '{_CALLS_BEGIN}' -}}}}\n{_EACH}"
        "{%- if not loop.first -%}{{- '\\n' -}}{%- endif -%}\n"
        f"{{{{- '{_CALL_BEGIN}function{_SEPARATOR}' + f.name + '\\n```json\\n' -}}}}\n"
        f"{{{{- f.arguments | tojson + '\\n```{_CALL_END}' -}}}}\n{_NEXT}"
        f"{{{{- '{_CALLS_END}' -}}}}\n",
        end=_EOS,
        thought=_THOUGHT,
        opening="{{- '<think>\\n' -}}",
    ),
    "deepseek_v31": _template(
        f"{{{{- '{_CALLS_BEGIN}' -}}}}\n{_EACH}"
        f"{{{{- '{_CALL_BEGIN}' + f.name + '{_SEPARATOR}' + f.arguments | tojson -}}}}\n"
        f"{{{{- '{_CALL_END}' -}}}}\n{_NEXT}{{{{- '{_CALLS_END}' -}}}}\n",
        end=_EOS,
        thought=_THOUGHT,
        opening="{{- '<think>' if thinking else '</think>' -}}",
    ),
    "dsml": _in_dsml(dsml.DSML),
    "dsml_v4": _in_dsml(dsml.DSML_V4),
    "minimax": _template(
        f"{{{{- '\\n<minimax:tool_call>\\n' -}}}}\n{_EACH}"
        "{{- '<invoke name=\"' + f.name + '\">\\n' -}}\n"
        "{%- for key, value in f.arguments.items() -%}\n"
        "{{- '<parameter name=\"' + key + '\">' -}}\n"
        "{{- value if value is string else value | tojson -}}\n"
        f"{{{{- '</parameter>\\n' -}}}}\n{{%- endfor -%}}\n{{{{- '</invoke>\\n' -}}}}\n{_NEXT}"
        "{{- '</minimax:tool_call>' -}}\n",
        end="[e~[",
        thought=_THOUGHT,
        opening="{{- '<think>\\n' -}}",
    ),
    "minimax_m3": _template(
        f"{{{{- '{_M3.block[0]}\\n' -}}}}\n{_EACH}"
        f"{{{{- '{_M3.call[0]}' + f.name + '\">' -}}}}\n"
        "{%- for key, value in f.arguments.items() -%}\n"
        f"{{{{- '{_M3.parameter[0]}' + key + '>' -}}}}\n"
        "{{- value if value is string else value | tojson -}}\n"
        f"{{{{- '{_M3.parameter[1][:-3]}' + key + '>' -}}}}\n{{%- endfor -%}}\n"
        f"{{{{- '{_M3.call[1]}\\n' -}}}}\n{_NEXT}{{{{- '{_M3.block[1]}' -}}}}\n",
        end="[e~[",
        thought="{%- if message.reasoning_content -%}"
        "{{- '<mm:think>' + message.reasoning_content -}}{%- endif -%}\n"
        "{{- '</mm:think>' -}}\n",
        opening="{{- '</mm:think>' if thinking_mode == 'disabled' else '' -}}",
    ),
    "qwen_coder": _template(
        f"{_EACH}{{{{- '\\n<tool_call>\\n<function=' + f.name + '>\\n' -}}}}\n"
        "{%- for key, value in f.arguments.items() -%}\n"
        "{{- '<parameter=' + key + '>\\n' -}}\n"
        "{%- set structured = value is mapping or (value is sequence and value is not string) -%}\n"
        "{{- value | tojson if structured else value | string -}}\n"
        "{{- '\\n</parameter>\\n' -}}\n{%- endfor -%}\n"
        f"{{{{- '</function>\\n</tool_call>' -}}}}\n{_NEXT}",
        end="<|im_end|>",
    ),
    "glm": _glm("\\n", "{{- '' if enable_thinking else '\\n<think></think>' -}}"),
    "glm_v47": _glm("", "{{- '<think>' if enable_thinking else '</think>' -}}"),
    "hy3": _template(
        f"{{{{- '{_HY3.block[0]}\\n' -}}}}\n{_EACH}"
        f"{{{{- '{_HY3.call[0]}' + f.name + '{_HY3.until[0]}\\n' -}}}}\n"
        "{%- for key, value in f.arguments.items() -%}\n"
        f"{{{{- '{_HY3.parameter[0]}' + key + '{_HY3.name_end}\\n{_HY3.value}' -}}}}\n"
        "{{- value if value is string else value | tojson -}}\n"
        f"{{{{- '{_HY3.parameter[1]}\\n' -}}}}\n{{%- endfor -%}}\n"
        f"{{{{- '{_HY3.call[1]}\\n' -}}}}\n{_NEXT}{{{{- '{_HY3.block[1]}' -}}}}\n",
        end="<\uff5chy_eos:opensource\uff5c>",
        thought="{{- '<think:opensource>' + (message.reasoning_content or '') -}}\n"
        "{{- '</think:opensource>' -}}\n",
        opening="{%- set off = reasoning_effort | default('no_think') == 'no_think' -%}\n"
        "{{- '<think:opensource></think:opensource>' if off else '<think:opensource>' -}}",
    ),
    "seed_oss": _template(
        f"{_EACH}{{{{- '\\n<seed:tool_call>\\n<function=' + f.name + '>\\n' -}}}}\n"
        "{%- for key, value in f.arguments.items() -%}\n"
        "{{- '<parameter=' + key + '>' -}}\n"
        "{{- value if value is string else value | tojson -}}\n"
        "{{- '</parameter>\\n' -}}\n{%- endfor -%}\n"
        f"{{{{- '</function>\\n</seed:tool_call>' -}}}}\n{_NEXT}",
        end="<seed:eos>",
        thought="{%- if message.reasoning_content -%}"
        "{{- '<seed:think>' + message.reasoning_content + '</seed:think>' -}}{%- endif -%}\n",
    ),
    "apertus": _template(
        f"{{{{- '<|tools_prefix|>[' -}}}}\n{_EACH}"
        "{{- '{\"' + f.name + '\": ' + f.arguments | tojson + '}' -}}\n"
        f"{{%- if not loop.last -%}}{{{{- ', ' -}}}}{{%- endif -%}}\n{_NEXT}"
        "{{- ']<|tools_suffix|>' -}}\n",
        end="<|assistant_end|>",
        thought="{%- if enable_thinking and message.reasoning_content -%}"
        "{{- '<|inner_prefix|>' + message.reasoning_content + '<|inner_suffix|>' -}}"
        "{%- endif -%}\n",
        opening="{{- '' if enable_thinking else '<|inner_prefix|><|inner_suffix|>' -}}",
    ),
    "cohere": _template(
        f"{{{{- '<|START_ACTION|>[\\n' -}}}}\n{_EACH}"
        '{{- \'    {"tool_call_id": "\' + loop.index0 | string + \'", "tool_name": "\' -}}\n'
        "{{- f.name + '\", \"parameters\": ' + f.arguments | tojson + '}' -}}\n"
        f"{{{{- ',\\n' if not loop.last else '\\n' -}}}}\n{_NEXT}"
        "{{- ']<|END_ACTION|>' -}}\n",
        end="<|END_OF_TURN_TOKEN|>",
        thought="{%- if message.reasoning_content -%}"
        "{{- '<|START_THINKING|>' + message.reasoning_content + '<|END_THINKING|>' -}}"
        "{%- endif -%}\n",
        opening="{{- '' if enable_thinking else '<|START_THINKING|><|END_THINKING|>' -}}",
    ),
    "mistral": _template(
        f"{{{{- '[TOOL_CALLS][' -}}}}\n{_EACH}"
        "{%- if call.id | length != 9 -%}{{- raise_exception('ids have 9 characters') -}}"
        "{%- endif -%}\n{%- set written = f | tojson -%}\n"
        "{{- written[:-1] + ', \"id\": \"' + call.id + '\"}' -}}\n"
        f"{{%- if not loop.last -%}}{{{{- ', ' -}}}}{{%- endif -%}}\n{_NEXT}{{{{- ']' -}}}}\n",
        end="</s>",
    ),
    "mistral_v11": _template(
        f"{_EACH}{{{{- '[TOOL_CALLS]' + f.name + '[CALL_ID]' + call.id + '[ARGS]' -}}}}\n"
        f"{{{{- f.arguments | tojson -}}}}\n{_NEXT}",
        end="</s>",
    ),
    "mistral_v13": _template(
        f"{_EACH}{{{{- '[TOOL_CALLS]' + f.name + '[ARGS]' + f.arguments | tojson -}}}}\n{_NEXT}",
        end="</s>",
        thought="{%- if message.reasoning_content -%}"
        "{{- '[THINK]' + message.reasoning_content + '[/THINK]' -}}{%- endif -%}\n",
    ),
    "gemma4": _template(
        "{%- macro value(x) -%}\n"
        "{%- if x is string -%}{{- '<|\"|>' + x + '<|\"|>' -}}\n"
        "{%- elif x is boolean -%}{{- 'true' if x else 'false' -}}\n"
        "{%- elif x is mapping -%}{{- '{' -}}\n"
        "{%- for key, inner in x | dictsort -%}{{- ',' if not loop.first -}}\n"
        "{{- key -}}{{- ':' -}}{{- value(inner) -}}{%- endfor -%}{{- '}' -}}\n"
        "{%- elif x is sequence -%}{{- '[' -}}\n"
        "{%- for inner in x -%}{{- ',' if not loop.first -}}{{- value(inner) -}}{%- endfor -%}\n"
        "{{- ']' -}}{%- else -%}{{- x -}}{%- endif -%}\n{%- endmacro -%}\n"
        f"{_EACH}{{{{- '<|tool_call>call:' + f.name -}}}}{{{{- value(f.arguments) -}}}}\n"
        f"{{{{- '<tool_call|>' -}}}}\n{_NEXT}",
        end="<turn|>",
        thought="{%- if message.reasoning_content and message.tool_calls -%}"
        "{{- '<|channel>thought\\n' + message.reasoning_content + '\\n<channel|>' -}}"
        "{%- endif -%}\n",
        opening="{{- '' if enable_thinking else '<|channel>thought\\n<channel|>' -}}",
    ),
    "harmony": HARMONY,
    "muse": MUSE,
    "kimi_k2": _template(
        f"{{{{- '{kimi.BEGIN}' -}}}}\n{_EACH}"
        f"{{{{- '{kimi.CALL_BEGIN}functions.' + f.name + ':' + loop.index0 | string -}}}}\n"
        f"{{{{- '{kimi.ARGUMENTS}' + f.arguments | tojson + '{kimi.CALL_END}' -}}}}\n{_NEXT}"
        f"{{{{- '{kimi.END}' -}}}}\n",
        end="<|im_end|>",
    ),
    "lfm2": _template(_python(*lfm2.TAGS), end="<|im_end|>"),
    "pythonic": _template(_python("", ""), end="<|eot_id|>"),
    "granite": f"{{%- if tools -%}}Say {granite.BEGIN} and a list to call one. {{% endif -%}}\n"
    + _template("", end="<|end_of_text|>"),
    "glm4": """\
[gMASK]<sop>
{%- for tool in tools or [] -%}{{- '<|system|>\n' + tool | tojson -}}{%- endfor -%}
{%- for message in messages -%}
{%- if message.role in ('system', 'user', 'observation') -%}
{{- '<|' + message.role + '|>\n' + message.content -}}
{%- elif message.role == 'assistant' -%}
{{- '<|assistant|>' + (message.metadata or '') + '\n' + message.content -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
""",
}
SAID: Final[tuple[ToolFormat, ...]] = ("granite", "glm4")
"""Formats whose templates show of a call only what a turn says."""
"""Hermes's is in `tests.fakes.checkpoints`."""

_ENDS: Final = (
    *("<|eot_id|>", "<|user|>", "<|eom_id|>", _EOS, "[e~[", "</s>", "[THINK]", "[/THINK]"),
    *(
        "<turn|>",
        "<|tool_response>",
        "<|eot|>",
        "<|eom|>",
        "<|assistant_end|>",
        "<|inner_prefix|>",
        "<|inner_suffix|>",
    ),
    *("<seed:eos>", "<seed:think>", "</seed:think>", "<|observation|>"),
    *("<mm:think>", "</mm:think>"),
    "<\uff5chy_eos:opensource\uff5c>",
    *("<|END_OF_TURN_TOKEN|>", "<|START_THINKING|>", "<|END_THINKING|>"),
)
VOCAB: Final = 704
"""Room for the words that tests have, and CONTROLS."""
CONTROLS: Final = tuple(sorted({*_ENDS, *(tag for form in FORMATS.values() for tag in form.tags)}))
_REASONING: Final = ("<think:opensource>", "</think:opensource>")
"""No controls here, since a published template takes /think out of what users type."""


def speak(checkpoint: Path, template: str) -> Path:
    """Give a checkpoint of VOCAB tokens a template, and CONTROLS as special ones."""
    config = checkpoint / "tokenizer_config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps({**document, "chat_template": template}))
    path = str(checkpoint / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    for text in (*CONTROLS, *_REASONING):
        if tokenizer.token_to_id(text) is None:
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
    assert tokenizer.get_vocab_size() <= VOCAB
    tokenizer.save(path)
    return checkpoint
