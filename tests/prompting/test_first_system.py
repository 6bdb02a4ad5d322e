"""The system message at the beginning is shown by every template, if need be in a user's turn."""

from __future__ import annotations

import pytest

from appliance.errors import ObjectionError
from appliance.prompting import ChatTemplate, Conversation, Message
from tests.prompting.test_later_systems import (
    ANSWER,
    CALL,
    HELLO,
    LATER,
    RESULT,
    SHOWS,
    SYSTEM,
    TURNS,
    opened,
    rendered,
)
from tests.prompting.test_published_templates import PUBLISHED, source_of

REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + TURNS
)
LEAVES_OUT = (
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "[assistant]"
)
BEHIND = (
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]"
    "{% if loop.last and m.role == 'user' and messages[0].role == 'system' %}"
    "{{ messages[0].content }}\n\n{% endif %}{{ m.content }}{% endfor %}[assistant]"
)
"""As Mistral Nemo's: in the last turn, if it is a user's."""


@pytest.mark.parametrize("source", [REFUSES, LEAVES_OUT], ids=["refuses", "leaves out"])
@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ((SYSTEM, HELLO), "[user]Help.\n\nhello"),
        ((SYSTEM, HELLO, ANSWER, HELLO), "[user]Help.\n\nhello[assistant]hi[user]hello"),
        ((SYSTEM, LATER, HELLO), "[user]Help.\n\nBe brief.\n\nhello"),
        ((SYSTEM,), "[user]Help."),
        ((SYSTEM, ANSWER), "[user]Help.[assistant]hi"),
        ((HELLO,), "[user]hello"),
    ],
    ids=range(6),
)
def test_a_template_without_one_gets_it_before_what_the_user_says_first(
    source: str, messages: tuple[Message, ...], text: str
) -> None:
    assert rendered(source, *messages) == f"{text}[assistant]"


def test_a_template_that_drops_it_while_tools_are_called_gets_it_where_it_stood() -> None:
    before = rendered(BEHIND, SYSTEM, HELLO, ANSWER, HELLO)
    assert before == "[user]hello[assistant]hi[user]Help.\n\nhello[assistant]"
    after = rendered(BEHIND, SYSTEM, HELLO, ANSWER, HELLO, CALL, RESULT)
    assert after.startswith(before), "what was computed is a prefix"
    assert after == f"{before}[tool]sunny[assistant]"


def test_what_a_template_shows_stays_as_it_is() -> None:
    assert rendered(SHOWS, SYSTEM, HELLO) == "[system]Help.[user]hello[assistant]"


def test_images_and_parts_stay_in_their_turn() -> None:
    seen = Message("user", "what?", parts=(None, "what?"))
    said = Message("system", "Help.", parts=("He", "lp."))
    source = (
        "{% for m in messages %}{{ raise_exception('no') if m.role == 'system' }}{% if m.content"
        " is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text or '<image>' }}"
        "{% endfor %}{% endif %}{% endfor %}"
    )
    assert rendered(source, said, seen) == "Help.\n\n<image>what?"


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_template_shows_it_in_each_kind_of_conversation(name: str) -> None:
    with opened(source_of(name)) as template:
        for messages in ((SYSTEM, HELLO), (SYSTEM, HELLO, ANSWER, HELLO)):
            assert "Help." in template.render(Conversation(messages)).text, messages
        called = shown(template, (SYSTEM, HELLO, CALL, RESULT))
        assert called is None or "Help." in called


def shown(template: ChatTemplate, messages: tuple[Message, ...]) -> str | None:
    """The prompt; None if the template refuses the conversation."""
    try:
        return template.render(Conversation(messages)).text
    except ObjectionError:
        return None
