"""Assistant turns with calls: rendered by a template, cut out of the prompt, and parsed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from appliance.bundle.specs import ToolFormat
from appliance.prompting import Conversation, Message
from appliance.prompting.conversation import switches
from appliance.prompting.environment import compile_template, render
from appliance.prompting.formats import FORMATS
from appliance.prompting.spelled_calls import spelled
from installer.checkpoint.tool_format import ANSWERED_TURNS, CALL_TURN, TOOL
from tests.prompting import conversations as talk
from tests.prompting.reading import read

TURNS: dict[str, Message] = {
    "a call": talk.CALL,
    "a call without arguments": Message("assistant", tool_calls=(talk.TWO_CALLS.tool_calls[1],)),
    "two calls": talk.TWO_CALLS,
}
_ENDS = re.compile(
    r"(<\|eot_id\|>|<\|eot\|>|<turn\|>|<\|tool_response>|<\|user\|>|<\|observation\|>|<\|im_end\|>|<\|assistant_end\|>|<\|END_OF_TURN_TOKEN\|>|<\|end_of_text\|>|<seed:eos>|<\uff5chy_eos:opensource\uff5c>|\[e~\[|</s>|<\uff5cend\u2581of\u2581sentence\uff5c>)"
)


def rendered(source: str, conversation: Conversation, **more: Any) -> str:
    variables: dict[str, object] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "messages": conversation.template_messages(),
        "tools": conversation.template_tools(),
        **switches(thinking=conversation.thinking),
        "strftime_now": datetime(2025, 1, 1).strftime,
        **more,
    }
    return render(compile_template(source), variables, 1 << 20)


def observed(source: str) -> tuple[str, str]:
    """What the builder renders: a prompt with a tool, and a conversation that calls it."""
    return _observed(source, [CALL_TURN])


def saying(source: str, written: ToolFormat) -> str:
    """What it renders of a conversation whose calls a turn says."""
    return _observed(source, spelled(ANSWERED_TURNS, written))[1]


def _observed(source: str, turns: Sequence[Mapping[str, object]]) -> tuple[str, str]:
    question = {"role": "user", "content": "Which way is north?"}
    empty = Conversation((talk.HELLO,))
    shown = rendered(source, empty, messages=[question], tools=[TOOL], add_generation_prompt=True)
    try:
        return shown, rendered(source, empty, messages=[question, *turns], tools=[TOOL])
    except Exception:
        return shown, ""


def written_turn(source: str, message: Message, said: ToolFormat = "") -> str:
    """What the template writes for an assistant's turn, behind what a prompt ends with.

    said: the format in which a turn says its calls, if the template writes none.
    """
    asked = Conversation((talk.ASKED,), tools=talk.TOOLS)
    whole = Conversation((talk.ASKED, message), tools=talk.TOOLS)
    prompt = rendered(source, asked, add_generation_prompt=True)
    turns = whole.template_messages()
    messages = spelled(turns, said) if said else turns
    text = rendered(source, whole, messages=messages, add_generation_prompt=False)
    same = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], zip(prompt, text)))  # noqa: B905
    opened = text.rfind("<", 0, same)
    if opened >= 0 and ">" not in text[opened:same]:
        same = opened  # two tags begin alike
    return _ENDS.split(text[same:])[0]


def read_turn(source: str, written: ToolFormat, message: Message, *, says: bool = False) -> None:
    """Assert that the calls of `message` are found in what the template writes for it.

    says: whether that is what the turn says.
    """
    text = written_turn(source, message, written if says else "")
    for parts in ([text], list(text), [text[: len(text) // 2], text[len(text) // 2 :]]):
        numbers = itertools.count()
        parser = FORMATS[written].parser(lambda: f"c{next(numbers)}", talk.TOOLS)  # noqa: B023
        answer, _, calls = read(parser, parts)
        assert answer.strip() == ""
        found = [(name, json.loads(arguments)) for _, name, arguments in calls]
        expected = [(c.name, json.loads(c.arguments_json or "{}")) for c in message.tool_calls]
        assert found == expected, text
