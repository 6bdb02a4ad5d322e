"""Templates for what publishers tell by a program: they write what the program writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from appliance.bundle.specs import ToolFormat
from appliance.prompting import Conversation, Message, Tool, ToolCall
from appliance.prompting.dsml import DSML, DSML_V4, MARK
from installer.checkpoint.prompting import read_prompting
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.tokenizer import CheckpointTokenizer
from installer.checkpoint.written_templates import WRITTEN
from tests.checkpoint.test_refusals import edit_json
from tests.fakes.chat_formats import VOCAB, speak
from tests.fakes.checkpoints import write_qwen3
from tests.prompting.turns import TURNS, read_turn, rendered

SOURCE, V4 = WRITTEN["deepseek_v32"], WRITTEN["deepseek_v4"]
FORMATS: Mapping[str, ToolFormat] = {"deepseek_v32": "dsml", "deepseek_v4": "dsml_v4"}
ASK, SAY, END = (
    "<\uff5cUser\uff5c>",
    "<\uff5cAssistant\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
DATE = ToolCall("c1", "get_date", '{"zone": "UTC", "days": 1}')
CLOCK = ToolCall("c2", "clock", "{}")
TALK = (
    Message("system", "Be brief."),
    Message("user", "Which day?"),
    Message("assistant", reasoning="I look.", tool_calls=(DATE, CLOCK)),
    Message("tool", "Monday", tool_call_id="c1"),
    Message("tool", "12:00", tool_call_id="c2"),
    Message("assistant", "Monday.", reasoning="So it is."),
    Message("user", "Which day?"),
    Message("assistant", reasoning="Once more.", tool_calls=(CLOCK,)),
    Message("tool", "12:01", tool_call_id="c2"),
)
TOOLS = (Tool("clock", "Tells the time.", '{"type": "object", "properties": {}}'),)
CALLED = f"""

{DSML.block[0]}
<{MARK}invoke name="get_date">
<{MARK}parameter name="zone" string="true">UTC</{MARK}parameter>
<{MARK}parameter name="days" string="false">1</{MARK}parameter>
</{MARK}invoke>
<{MARK}invoke name="clock">

</{MARK}invoke>
{DSML.block[1]}{END}

<function_results>
<result>Monday</result>
<result>12:00</result>
</function_results>

"""
AGAIN = f"""

{DSML.block[0]}
<{MARK}invoke name="clock">

</{MARK}invoke>
{DSML.block[1]}{END}

<function_results>
<result>12:01</result>
</function_results>

"""


def prompt(
    *messages: Message,
    thinking: bool = False,
    tools: tuple[Tool, ...] = (),
    source: str = SOURCE,
) -> str:
    return rendered(
        source, Conversation(messages, tools, thinking=thinking), add_generation_prompt=True
    )


def test_a_conversation_of_deepseek_v32_is_encoded_as_its_publisher_does() -> None:
    """As in the examples beside the published program, in short."""
    begun = f"<s>Be brief.{ASK}Which day?{SAY}</think>{CALLED}</think>Monday.{END}{ASK}Which day?"
    assert prompt(*TALK, thinking=True) == (
        f"{begun}{SAY}<think>Once more.</think>{AGAIN}<think>"
    ), "what was thought before the last question is left out"
    assert prompt(*TALK) == f"{begun}{SAY}</think>{AGAIN}</think>"
    assert prompt(*TALK[:2], thinking=True) == f"<s>Be brief.{ASK}Which day?{SAY}<think>"


def test_tools_stand_behind_the_systems_words() -> None:
    shown = '\n<functions>\n{"name": "clock", "description": "Tells the time.", "parameters": '
    shown += '{"type": "object", "properties": {}}}\n</functions>\n'
    for messages, before in ((TALK[:2], "<s>Be brief."), (TALK[1:2], "<s>")):
        text = prompt(*messages, tools=TOOLS)
        assert text.startswith(f"{before}\n\n## Tools\n\nYou have access to a set of tools")
        assert text.endswith(f"{shown}{ASK}Which day?{SAY}</think>")


def test_a_conversation_of_deepseek_v4_is_encoded_as_its_publisher_does() -> None:
    """Results and questions between two answers are one turn; where tools are offered, nothing that
    was thought is left out."""
    called, again = (
        text.partition(END)[0].replace("function_calls>", "tool_calls>") + END
        for text in (CALLED, AGAIN)
    )
    results = "<tool_result>Monday</tool_result>\n\n<tool_result>12:00</tool_result>"
    begun = f"<s>Be brief.{ASK}Which day?{SAY}"
    then = f"{ASK}Which day?{SAY}"
    last = f"{ASK}<tool_result>12:01</tool_result>{SAY}"
    assert prompt(*TALK, thinking=True, source=V4) == (
        f"{begun}</think>{called}{ASK}{results}{SAY}</think>Monday.{END}{then}</think>{again}"
        f"{last}<think>"
    )
    assert prompt(*TALK, source=V4) == (
        f"{begun}</think>{called}{ASK}{results}{SAY}</think>Monday.{END}{then}</think>{again}"
        f"{last}</think>"
    )
    shown = prompt(*TALK, thinking=True, tools=TOOLS, source=V4)
    assert shown.partition(ASK)[2] == (
        f"Which day?{SAY}<think>I look.</think>{called}{ASK}{results}{SAY}<think>So it is.</think>"
        f"Monday.{END}{then}<think>Once more.</think>{again}{last}<think>"
    )
    followed = prompt(*TALK, Message("user", "Well?"), source=V4)
    assert followed.endswith(f"{ASK}<tool_result>12:01</tool_result>\n\nWell?{SAY}</think>")


def test_tools_of_deepseek_v4_stand_behind_the_systems_words() -> None:
    shown = '\n### Available Tool Schemas\n\n{"name": "clock", "description": "Tells the time.", '
    shown += '"parameters": {"type": "object", "properties": {}}}\n\nYou MUST strictly follow the '
    shown += "above defined tool name and parameter schemas to invoke tool calls.\n"
    for messages, before in ((TALK[:2], "<s>Be brief."), (TALK[1:2], "<s>")):
        text = prompt(*messages, tools=TOOLS, source=V4)
        assert text.startswith(f"{before}\n\n## Tools\n\nYou have access to a set of tools")
        assert f'"{DSML_V4.block[0]}" block' in text
        assert text.endswith(f"{shown}{ASK}Which day?{SAY}</think>")


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(("family", "name"), FORMATS.items())
def test_the_turn_that_it_writes_is_read_back(family: str, name: ToolFormat, turn: str) -> None:
    read_turn(WRITTEN[family], name, TURNS[turn])


@pytest.mark.parametrize(("family", "name"), FORMATS.items())
def test_a_checkpoint_gets_it_that_has_none(tmp_path: Path, family: str, name: ToolFormat) -> None:
    directory = speak(write_qwen3(tmp_path / "checkpoint", vocab=VOCAB), "")
    edit_json(directory / "config.json", lambda c: c.update(model_type=family))
    checkpoint = Checkpoint(directory)
    chat = read_prompting(checkpoint, CheckpointTokenizer(checkpoint, VOCAB))
    assert chat.written
    assert not chat.thinking
    assert (chat.template, chat.prompting.tool_format) == (WRITTEN[family], name)
    assert (chat.prompting.reasoning_start, chat.prompting.reasoning) == ("<think>", msgspec.UNSET)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    checkpoint = Checkpoint(directory)
    assert not read_prompting(checkpoint, CheckpointTokenizer(checkpoint, VOCAB)).written
