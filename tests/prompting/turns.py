"""Assistant turns with calls: rendered by a template, cut out of the prompt, and parsed."""

from __future__ import annotations

import itertools
import json
import re
from datetime import datetime
from typing import Any

from appliance.bundle.specs import ToolFormat
from appliance.prompting import Conversation, Message
from appliance.prompting.conversation import switches
from appliance.prompting.environment import compile_template, render
from appliance.prompting.formats import FORMATS
from installer.checkpoint.tool_format import CALL_TURN, TOOL
from tests.prompting import conversations as talk
from tests.prompting.reading import read

TURNS: dict[str, Message] = {
    "a call": talk.CALL,
    "a call without arguments": Message("assistant", tool_calls=(talk.TWO_CALLS.tool_calls[1],)),
    "two calls": talk.TWO_CALLS,
}
_ENDS = re.compile(
    r"(<\|eot_id\|>|<\|eot\|>|<turn\|>|<\|tool_response>|<\|user\|>|<\|im_end\|>|<\|assistant_end\|>|<\|END_OF_TURN_TOKEN\|>|<\|end_of_text\|>|<seed:eos>|\[e~\[|</s>|<\uff5cend\u2581of\u2581sentence\uff5c>)"
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
    question = {"role": "user", "content": "Which way is north?"}
    empty = Conversation((talk.HELLO,))
    shown = rendered(source, empty, messages=[question], tools=[TOOL], add_generation_prompt=True)
    try:
        return shown, rendered(source, empty, messages=[question, CALL_TURN], tools=[TOOL])
    except Exception:
        return shown, ""


def written_turn(source: str, message: Message) -> str:
    """What the template writes for an assistant's turn, behind what a prompt ends with."""
    asked = Conversation((talk.ASKED,), tools=talk.TOOLS)
    whole = Conversation((talk.ASKED, message), tools=talk.TOOLS)
    prompt = rendered(source, asked, add_generation_prompt=True)
    text = rendered(source, whole, add_generation_prompt=False)
    same = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], zip(prompt, text)))  # noqa: B905
    opened = text.rfind("<", 0, same)
    if opened >= 0 and ">" not in text[opened:same]:
        same = opened  # two tags begin alike
    return _ENDS.split(text[same:])[0]


def read_turn(source: str, written: ToolFormat, message: Message) -> None:
    """Assert that the calls of `message` are found in what the template writes for it."""
    text = written_turn(source, message)
    for parts in ([text], list(text), [text[: len(text) // 2], text[len(text) // 2 :]]):
        numbers = itertools.count()
        parser = FORMATS[written].parser(lambda: f"c{next(numbers)}", talk.TOOLS)  # noqa: B023
        answer, _, calls = read(parser, parts)
        assert answer.strip() == ""
        found = [(name, json.loads(arguments)) for _, name, arguments in calls]
        expected = [(c.name, json.loads(c.arguments_json or "{}")) for c in message.tool_calls]
        assert found == expected, text
