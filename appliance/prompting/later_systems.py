"""System messages behind the first message, for templates that do not show them there.

Many published templates know a system message only at the beginning: some refuse another one, and
some leave it out without a word. Owns how such a template is found out, by letting it render one in
each place, and where the words go then: into the user's turn, between `<system>` tags.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from appliance.prompting.conversation import Conversation, Message, Tool, ToolCall

MARK: Final = "XLATERX"
"""Stands in a system message of a trial; what a template writes by itself does not have it."""
_FIRST: Final = Message("system", "Help.")
_ASKED: Final = Message("user", "Hello.")
_LATER: Final = Message("system", MARK)
_CALLED: Final = (
    Message("assistant", tool_calls=(ToolCall("call00001", "look", "{}"),)),
    Message("tool", "1", tool_call_id="call00001"),
)
TRIALS: Final = (
    Conversation((_FIRST, _LATER, _ASKED)),
    Conversation((_FIRST, _ASKED, _LATER)),
    Conversation((_FIRST, _ASKED, Message("assistant", "Hello."), _LATER, _ASKED)),
    Conversation((_FIRST, _ASKED, *_CALLED, _LATER), (Tool("look"),)),
)
"""A template shows later system messages if it renders these, and each with its mark."""


def has_later(messages: Sequence[Message]) -> bool:
    """Whether one of `messages` but the first is the system's."""
    return any(message.role == "system" for message in messages[1:])


def folded(messages: Sequence[Message]) -> tuple[Message, ...]:
    """`messages` with no system message but the first.

    A later one is put behind the turn of a user or a tool before it, else before the user's turn
    that follows, else it is a user's turn; right behind the first it goes on with that.
    """
    done: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        before = done[-1].role if done else ""
        if message.role != "system" or not before:
            _settle(done, waiting, message)
        elif before == "system":
            done[-1] = done[-1].with_behind(message)
        elif before == "assistant" or waiting:
            waiting.append(_tagged(message))
        else:
            done[-1] = joined(done[-1], behind=_tagged(message))
    _settle(done, waiting, None)
    return tuple(done)


def _settle(done: list[Message], waiting: list[str], message: Message | None) -> None:
    """Add `message` to those `done`, and what waits for a user's turn before it."""
    text = "\n\n".join(waiting)
    waiting.clear()
    if text and message is not None and message.role == "user":
        message = joined(message, before=text)
    elif text:
        done.append(Message("user", text))
    if message is not None:
        done.append(message)


def _tagged(message: Message) -> str:
    return f"<system>\n{message.text}\n</system>"


def joined(message: Message, *, before: str = "", behind: str = "") -> Message:
    """`message` with a text before or behind what it says."""
    start = f"{before}\n\n" if before else ""
    end = f"\n\n{behind}" if behind else ""
    parts: Iterable[str | None] = message.parts and (start, *message.parts, end)
    return replace(
        message,
        content=f"{start}{message.content}{end}",
        parts=tuple(part for part in parts if part != ""),
    )
