"""Calls in a conversation reach models whose templates do not write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from appliance.bundle.specs import ToolFormat
from appliance.prompting import ChatTemplate, Conversation
from appliance.prompting.formats import FORMATS
from appliance.prompting.marks import ControlTokens
from tests.fakes.chat_formats import CONTROLS, SAID, TEMPLATES
from tests.fakes.checkpoints import CHAT_TEMPLATE
from tests.prompting import conversations as talk
from tests.prompting.reading import read
from tests.prompting.test_published_templates import FETCHED

CONTENT_ALONE = """\
{%- if tools -%}{{- 'TOOLS ' + tools | tojson + '\\n' -}}{%- endif -%}
{%- for message in messages -%}
{{- message.role | upper + ':' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
CALLED = Conversation(
    (talk.ASKED, talk.TWO_CALLS, talk.RESULT, talk.OTHER_RESULT), tools=talk.TOOLS
)
IN_CONTENT: dict[ToolFormat, str] = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
    "granite": '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}, '
    '{"name": "clock", "arguments": {}}]',
    "lfm2": '<|tool_call_start|>[weather(city="Oslo"), clock()]<|tool_call_end|>',
    "pythonic": '[weather(city="Oslo"), clock()]',
}


@contextmanager
def opened(source: str, written: ToolFormat) -> Iterator[Callable[[Conversation], str]]:
    control = ControlTokens([*CONTROLS, *FORMATS[written].tags])
    with closing(ChatTemplate(source, control=control, tool_format=written)) as template:

        def render(conversation: Conversation) -> str:
            """Its tokens as one text, which a user's words are no part of."""
            prompt = template.render(conversation)
            split = control.split(prompt.text, prompt.mark or "\U000f0000")
            return "".join(f"{text}{token and f'[{token}]'}" for text, token in split)

        yield render


@pytest.mark.parametrize("written", IN_CONTENT)
def test_a_turn_says_the_calls_that_its_template_leaves_out(written: ToolFormat) -> None:
    expected = IN_CONTENT[written]
    for tag in FORMATS[written].tags:
        expected = expected.replace(tag, f"[{tag}]")
    with opened(CONTENT_ALONE, written) as render:
        assert f"ASSISTANT:{expected}<|im_end|>\nTOOL:" in render(CALLED)
        said = replace(CALLED, messages=(talk.ASKED, talk.SAID_CALL, talk.OTHER_RESULT))
        assert "ASSISTANT:Let me look." in render(said)


@pytest.mark.parametrize("written", IN_CONTENT)
def test_what_a_turn_says_is_read_back(written: ToolFormat) -> None:
    with opened(CONTENT_ALONE, written) as render:
        text = render(Conversation((talk.ASKED, talk.CALL, talk.RESULT), tools=talk.TOOLS))
    for tag in FORMATS[written].tags:
        text = text.replace(f"[{tag}]", tag)
    turn = text.split("ASSISTANT:")[1].split("<|im_end|>")[0]
    parser = FORMATS[written].parser(lambda: "c", talk.TOOLS)
    ((_, name, arguments),) = read(parser, [turn])[2]
    assert (name, json.loads(arguments)) == ("weather", talk.ARGUMENTS)


def test_a_tag_in_an_argument_is_no_token() -> None:
    typed = json.dumps({"city": "<|tool_call_end|>"})
    call = replace(talk.CALL.tool_calls[0], arguments_json=typed)
    messages = (talk.ASKED, replace(talk.CALL, tool_calls=(call,)), talk.RESULT)
    with opened(CONTENT_ALONE, "lfm2") as render:
        text = render(Conversation(messages, tools=talk.TOOLS))
    assert '[<|tool_call_start|>][weather(city="<|tool_call_end|>")][<|tool_call_end|>]' in text


@pytest.mark.parametrize("written", [*TEMPLATES, "hermes"])
def test_a_template_that_writes_calls_is_given_them_as_they_are(written: ToolFormat) -> None:
    if written in (*SAID, "kimi_k2"):
        return
    source = TEMPLATES.get(written, CHAT_TEMPLATE)
    conversation = Conversation((talk.ASKED, talk.CALL, talk.RESULT), tools=talk.TOOLS)
    with opened(source, written) as render, closing(ChatTemplate(source)) as plain:
        prompt = plain.render(conversation).text
        text = render(conversation)
    for control in CONTROLS:
        text = text.replace(f"[{control}]", control)
    assert text == prompt


def test_glm_4_has_a_turn_for_each_call_and_observes_results() -> None:
    with opened(TEMPLATES["glm4"], "glm4") as render:
        text = render(CALLED)
    assert text.endswith(
        '[<|assistant|>]weather\n{"city": "Oslo"}[<|assistant|>]clock\n{}'
        f"[<|observation|>]\n{talk.RESULT.content}[<|observation|>]\n{talk.OTHER_RESULT.content}"
        "[<|assistant|>]"
    )


KIMI_RESULT = "{{- '## Return of ' + message.tool_call_id + '\\n' + message.content -}}"
IDS_OF_CALLS = TEMPLATES["kimi_k2"].replace(
    "'<|tool_call_begin|>functions.' + f.name + ':' + loop.index0 | string",
    "'<|tool_call_begin|>' + call.id",
)


@pytest.mark.parametrize(("source", "last"), [(TEMPLATES["kimi_k2"], 0), (IDS_OF_CALLS, 2)])
def test_results_have_the_ids_that_kimis_calls_are_written_with(source: str, last: int) -> None:
    """Whether the template writes the ids itself, or those that it is given."""
    assert TEMPLATES["kimi_k2"] != IDS_OF_CALLS
    role = "{{- message.role | upper + ':' + message.content + '<|im_end|>\\n' -}}"
    assert role in source
    shown = f"{{%- if message.role == 'tool' -%}}{KIMI_RESULT}{{%- else -%}}{role}{{%- endif -%}}"
    again = replace(talk.SAID_CALL, tool_calls=(replace(talk.SAID_CALL.tool_calls[0], id="other"),))
    messages = (*CALLED.messages, again, replace(talk.OTHER_RESULT, tool_call_id="other"))
    with opened(source.replace(role, shown), "kimi_k2") as render:
        text = render(replace(CALLED, messages=messages))
    ids = ["functions.weather:0", "functions.clock:1", f"functions.clock:{last}"]
    for name in ids:
        assert text.count(f"[<|tool_call_begin|>]{name}[") >= 1
        assert f"## Return of {name}\n" in text
    assert "a1b2c3d4e" not in text


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("LFM2-8B-A1B", "lfm2"),
        ("LFM2.5-Instruct", "lfm2"),
        ("ibm-granite-granite-3.3-2B-Instruct", "granite"),
    ],
)
def test_published_templates_show_calls_so(name: str, written: ToolFormat) -> None:
    path = FETCHED / f"{name}.jinja"
    if not path.exists():
        pytest.skip("scripts/fetch-templates has not been run")
    expected = IN_CONTENT[written]
    for tag in FORMATS[written].tags:
        expected = expected.replace(tag, f"[{tag}]")
    with opened(path.read_text("utf-8"), written) as render:
        assert expected in render(CALLED)
