"""The system message at the beginning, for templates that do not show it.

Gemma 2's refuses it, and Mistral Nemo's leaves it out unless a user speaks last: so while tools are
called, and of an answer that is continued. Owns how that is found out, by letting a template render
one, and where the words go then: before what a user says, as their publishers have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

from appliance.prompting.conversation import Conversation, Message, Tool, ToolCall
from appliance.prompting.later_systems import MARK, joined

Place = Literal["", "first", "last"]
"""The user's turn that takes the words: of all, or none where the template shows them itself."""
_BEGIN: Final = (Message("system", MARK), Message("user", "Hello."))
ASKED: Final = Conversation(_BEGIN)
CALLED: Final = Conversation(
    (
        *_BEGIN,
        Message("assistant", tool_calls=(ToolCall("call00001", "look", "{}"),)),
        Message("tool", "1", tool_call_id="call00001"),
    ),
    (Tool("look"),),
)


def place(asked: str | None, called: str | None) -> Place:
    """From what the trials ASKED and CALLED became; None: it was refused."""
    if asked is None or MARK not in asked:
        return "first"
    return "last" if called is not None and MARK not in called else ""


def placed(messages: Sequence[Message], where: Place) -> tuple[Message, ...]:
    """`messages`, of which the first is the system's, with its words where they are shown."""
    first, *rest = messages
    users = [at for at, message in enumerate(rest) if message.role == "user"]
    if not where or (where == "last" and (not users or rest[-1].role == "user")):
        return tuple(messages)
    if not users:
        return (replace(first, role="user"), *rest)
    at = users[0 if where == "first" else -1]
    rest[at] = joined(rest[at], before=first.text)
    return tuple(rest)
