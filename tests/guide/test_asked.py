"""The pages of what people ask are read as they are written."""

from __future__ import annotations

from pathlib import Path

from guide_recipe.sources import HANDBOOK, OFF_TOPIC, Sources
from installer.ask.asked import Question, read_asked

PAGE = """\
# Ways to ask

- this is about the page

## create-a-key

+ make a key
* the new key
- keys?
- keys?

## off-topic

no bullet at all
"""


def test_a_bullet_says_what_kind_of_phrase_it_is(tmp_path: Path) -> None:
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked/page.md").write_text(PAGE)
    asked = read_asked(tmp_path)
    assert asked == (
        Question("create-a-key", "make a key", "verb"),
        Question("create-a-key", "the new key", "noun"),
        Question("create-a-key", "keys?"),
        Question("off-topic", "no bullet at all"),
    )
    assert [question.plain for question in asked[:2]] == ["how do I make a key", "the new key"]


def test_a_handbook_without_such_pages_has_none(tmp_path: Path) -> None:
    assert read_asked(tmp_path) == ()


def test_every_topic_is_a_section_or_has_a_reply(sources: Sources) -> None:
    topics = {question.topic for question in read_asked(HANDBOOK)}
    sections = {passage.id for passage in sources.passages}
    assert sections < topics
    assert topics - sections == {"greeting", "thanks", OFF_TOPIC}
