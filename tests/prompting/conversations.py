"""Thirty conversations that a template may be asked to render, in every shape that APIs admit."""

from __future__ import annotations

import json
from typing import Any, Final

from appliance.prompting import Conversation, Message, Tool, ToolCall

ARGUMENTS: Final[dict[str, Any]] = {
    "city": 'Zürich "HB" — 你好 </p>',
    "days": 3,
    "exact": -4.5,
    "hourly": True,
    "tags": ["a", 1, None, {"deep": [[]]}],
    "area": {"lat": 47.4, "name": "x\ny"},
    "note": "two\nlines\n",
}
WEATHER: Final = Tool(
    "weather",
    'Tells "the weather" <here> & now',
    json.dumps(
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Such as Zürich"},
                "days": {"type": "integer"},
                "exact": {"type": "number"},
                "hourly": {"type": "boolean"},
                "tags": {"type": "array", "items": {}},
                "area": {"type": "object"},
                "note": {"type": "string"},
            },
            "required": ["city"],
        }
    ),
)
CLOCK: Final = Tool("clock", "Tells the time.", '{"type": "object", "properties": {}}')
SYSTEM: Final = Message("system", "Be brief.\n")
HELLO: Final = Message("user", "  Hi — 你好, ça va? \U0001f600 ")
ANSWER: Final = Message("assistant", "Hello!\n\n* one\n* two")
THOUGHT: Final = Message("assistant", "Hello!", reasoning="They greet me.\nSo do I.")
AGAIN: Final = Message("user", "And <b>now</b> & 'then'?")
ASKED: Final = Message("user", "Weather in Zürich?")
CALL: Final = Message(
    "assistant", tool_calls=(ToolCall("a1b2c3d4e", "weather", json.dumps(ARGUMENTS)),)
)
THOUGHT_CALL: Final = Message(
    "assistant",
    reasoning="I must call.",
    tool_calls=(ToolCall("a1b2c3d4e", "weather", '{"city": "Oslo", "days": [1, 2.5, null]}'),),
)
SAID_CALL: Final = Message(
    "assistant", "Let me look.", tool_calls=(ToolCall("f6g7h8i9j", "clock", "{}"),)
)
TWO_CALLS: Final = Message(
    "assistant",
    tool_calls=(
        ToolCall("a1b2c3d4e", "weather", '{"city": "Oslo"}'),
        ToolCall("f6g7h8i9j", "clock", ""),
    ),
)
RESULT: Final = Message("tool", '{"temperature": -4.5, "text": "Schnee"}', tool_call_id="a1b2c3d4e")
OTHER_RESULT: Final = Message("tool", "12:00", tool_call_id="f6g7h8i9j")
SO: Final = Message("assistant", "It is cold.")
TOOLS: Final = (WEATHER, CLOCK)


def _talk(*messages: Message, **more: Any) -> Conversation:
    return Conversation(messages, **more)


CONVERSATIONS: Final[dict[str, Conversation]] = {
    "one question": _talk(HELLO),
    "one question, thinking": _talk(HELLO, thinking=True),
    "a system's words": _talk(SYSTEM, HELLO),
    "a system's words, thinking": _talk(SYSTEM, HELLO, thinking=True),
    "an empty system": _talk(Message("system", ""), HELLO),
    "an empty question": _talk(Message("user", "")),
    "turns": _talk(HELLO, ANSWER, AGAIN),
    "turns, thinking": _talk(HELLO, THOUGHT, AGAIN, thinking=True),
    "turns that were reasoned": _talk(SYSTEM, HELLO, THOUGHT, AGAIN),
    "many turns": _talk(*[HELLO, ANSWER] * 4, AGAIN),
    "many turns with a system": _talk(SYSTEM, *[HELLO, THOUGHT] * 3, AGAIN, thinking=True),
    "code": _talk(Message("user", "```py\nif a < b and c:\n\tprint('{{ x }}{% if %}')\n```")),
    "tags in the answer": _talk(
        HELLO, Message("assistant", "<think>\nold\n</think>\n\nHello"), AGAIN
    ),
    "tools": _talk(ASKED, tools=TOOLS),
    "tools, thinking": _talk(ASKED, tools=TOOLS, thinking=True),
    "one tool": _talk(ASKED, tools=(CLOCK,)),
    "tools with a system": _talk(SYSTEM, ASKED, tools=TOOLS),
    "tools after turns": _talk(HELLO, ANSWER, ASKED, tools=TOOLS),
    "a result": _talk(ASKED, CALL, RESULT, tools=TOOLS),
    "a result with a system": _talk(SYSTEM, ASKED, CALL, RESULT, tools=TOOLS, thinking=True),
    "a result of a reasoned call": _talk(ASKED, THOUGHT_CALL, RESULT, tools=TOOLS, thinking=True),
    "a result without reasoning": _talk(ASKED, THOUGHT_CALL, RESULT, tools=TOOLS),
    "a call with words": _talk(ASKED, SAID_CALL, OTHER_RESULT, tools=TOOLS),
    "two calls": _talk(ASKED, TWO_CALLS, RESULT, OTHER_RESULT, tools=TOOLS),
    "an answer from a result": _talk(ASKED, CALL, RESULT, SO, AGAIN, tools=TOOLS),
    "call after call": _talk(
        ASKED, CALL, RESULT, SAID_CALL, OTHER_RESULT, SO, AGAIN, tools=TOOLS, thinking=True
    ),
    "calls without tools": _talk(ASKED, CALL, RESULT, SO, AGAIN),
    "little effort": _talk(HELLO, thinking=True, effort="low"),
    "much effort with tools": _talk(SYSTEM, ASKED, tools=TOOLS, thinking=True, effort="high"),
    "a message that is continued": _talk(
        HELLO, Message("assistant", "1, 2, "), continue_final=True
    ),
}
assert len(CONVERSATIONS) == 30
