"""System messages behind the first: every template shows them, if need be in the user's turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from appliance.errors import RequestError
from appliance.prompting import ChatTemplate, Conversation, Message
from appliance.prompting.conversation import ToolCall
from appliance.prompting.later_systems import folded
from tests.prompting.test_published_templates import PUBLISHED, source_of

TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
SHOWS = TURNS
LEAVES_OUT = (
    "{% if messages[0].role == 'system' %}[system]{{ messages[0].content }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
REFUSES = (
    "{% for m in messages[1:] if m.role == 'system' %}{{ raise_exception('no') }}{% endfor %}"
    + TURNS
)
SYSTEM, LATER = Message("system", "Help."), Message("system", "Be brief.")
HELLO, ANSWER = Message("user", "hello"), Message("assistant", "hi")
CALL = Message("assistant", tool_calls=(ToolCall("call00001", "look", "{}"),))
RESULT = Message("tool", "sunny", tool_call_id="call00001")
SAID = "<system>\nBe brief.\n</system>"


@contextmanager
def opened(source: str) -> Iterator[ChatTemplate]:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    try:
        yield template
    finally:
        template.close()


def rendered(source: str, *messages: Message) -> str:
    with opened(source) as template:
        return template.render(Conversation(messages)).text


def test_a_template_that_shows_them_is_given_them_as_they_are() -> None:
    text = rendered(SHOWS, SYSTEM, HELLO, LATER)
    assert text == "[system]Help.[user]hello[system]Be brief.[assistant]"


@pytest.mark.parametrize("source", [LEAVES_OUT, REFUSES], ids=["leaves out", "refuses"])
@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ((SYSTEM, LATER, HELLO), "[system]Help.\n\nBe brief.[user]hello"),
        ((SYSTEM, HELLO, LATER), f"[system]Help.[user]hello\n\n{SAID}"),
        ((HELLO, ANSWER, LATER, HELLO), f"[user]hello[assistant]hi[user]{SAID}\n\nhello"),
        ((HELLO, ANSWER, LATER), f"[user]hello[assistant]hi[user]{SAID}"),
        ((HELLO, ANSWER, LATER, ANSWER), f"[user]hello[assistant]hi[user]{SAID}[assistant]hi"),
        ((HELLO, CALL, RESULT, LATER), f"[user]hello[assistant][tool]sunny\n\n{SAID}"),
    ],
    ids=range(6),
)
def test_a_template_that_does_not_gets_them_in_the_turn_beside(
    source: str, messages: tuple[Message, ...], text: str
) -> None:
    assert rendered(source, *messages).removesuffix("[assistant]") == text


def test_several_in_a_row_keep_their_order() -> None:
    other = Message("system", "Be kind.")
    (user,) = folded((HELLO, LATER, other))
    assert user.content == f"hello\n\n{SAID}\n\n<system>\nBe kind.\n</system>"
    _, _, turn = folded((HELLO, ANSWER, LATER, other, HELLO))
    assert turn.content == f"{SAID}\n\n<system>\nBe kind.\n</system>\n\nhello"


def test_images_of_the_turn_stay_where_they_are() -> None:
    seen = Message("user", "what?", parts=(None, "what?"))
    (user,) = folded((seen, LATER))
    assert user.parts == (None, "what?", f"\n\n{SAID}")
    _, _, turn = folded((HELLO, ANSWER, LATER, seen))
    assert turn.parts == (f"{SAID}\n\n", None, "what?")


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_published_template_leaves_one_out_or_refuses_it(name: str) -> None:
    with opened(source_of(name)) as template:
        for messages in (
            (SYSTEM, LATER, HELLO),
            (SYSTEM, HELLO, LATER),
            (SYSTEM, HELLO, ANSWER, LATER, HELLO),
            (SYSTEM, HELLO, CALL, RESULT, LATER),
        ):
            try:
                text = template.render(Conversation(messages)).text
            except RequestError:
                assert CALL in messages, "it has no turns of tools"
                continue
            assert "Be brief." in text, messages
