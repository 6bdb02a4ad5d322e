"""A handbook page is cut into sections that retrieval and the guide can use."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import NotFoundError, StorageError
from installer.ask.passages import Passage, read_handbook

PAGE = """\
# Title

An introduction, which is no section.

## First thing, first!

Do this
and that.

More about it.

And more.

Also asked: how do I do
this; why that.

## Second

Only a lead.
"""


def write(directory: Path, **pages: str) -> Path:
    for name, text in pages.items():
        (directory / f"{name}.md").write_text(text)
    return directory


def test_a_section_is_heading_lead_body_and_questions(tmp_path: Path) -> None:
    assert read_handbook(write(tmp_path, page=PAGE)) == (
        Passage(
            "first-thing-first",
            "page.md",
            "First thing, first!",
            "Do this and that.",
            "More about it. And more.",
            ("how do I do this", "why that"),
        ),
        Passage("second", "page.md", "Second", "Only a lead.", "", ()),
    )


def test_no_handbook_is_not_found(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotFoundError):
            read_handbook(directory)


@pytest.mark.parametrize("text", ["## Empty\n", "## Empty\n\nAlso asked: why.\n"])
def test_a_section_without_a_lead_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(StorageError, match="has no text"):
        read_handbook(write(tmp_path, page=text))


def test_two_sections_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"b\.md is malformed.*also in a\.md"):
        read_handbook(write(tmp_path, a="## The key\n\nA.\n", b="## The  key\n\nB.\n"))
