"""The handbook as passages: one for each second-level section of its Markdown pages.

Owns how a section is cut: heading; first paragraph (the lead, which is the short answer); the
paragraphs after it; and the questions of a last paragraph `Also asked: ...; ...`. Refuses a
section without a lead and two sections of one name, because the heading's slug is what training
data, figures and answers call the section by.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import NotFoundError, StorageError

_ALSO_ASKED = "Also asked: "


@dataclass(frozen=True, slots=True)
class Passage:
    """One section of the handbook. Each text is on one line."""

    id: str
    """Slug of the heading, unique in the handbook."""
    page: str
    """File name of the page, for example `keys.md`."""
    heading: str
    lead: str
    """First paragraph: the short answer."""
    body: str
    """Further paragraphs; may be empty."""
    questions: tuple[str, ...]
    """Other ways to ask for the section."""


def read_handbook(directory: Path) -> tuple[Passage, ...]:
    """All passages below `directory`, by page and place.

    Raises NotFoundError if there are none, StorageError if a section breaks the form.
    """
    pages = sorted(directory.glob("*.md")) if directory.is_dir() else []
    passages = [passage for page in pages for passage in _sections(page)]
    if not passages:
        raise NotFoundError(
            f"there is no handbook in {directory}",
            hint="install from the stick again: it puts the documentation there",
        )
    seen: dict[str, Passage] = {}
    for passage in passages:
        other = seen.setdefault(passage.id, passage)
        if other is not passage:
            raise _malformed(passage.page, f"{passage.heading!r} is also in {other.page}")
    return tuple(passages)


def slug(heading: str) -> str:
    """`heading` in lower case, with a hyphen for everything that is not a letter or digit."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def _sections(page: Path) -> list[Passage]:
    _, *sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [_section(page.name, text) for text in sections]


def _section(page: str, text: str) -> Passage:
    heading, _, rest = text.partition("\n")
    paragraphs = [" ".join(block.split()) for block in rest.split("\n\n") if block.strip()]
    questions: tuple[str, ...] = ()
    if paragraphs and paragraphs[-1].startswith(_ALSO_ASKED):
        asked = paragraphs.pop().removeprefix(_ALSO_ASKED).removesuffix(".")
        questions = tuple(asked.split("; "))
    if not paragraphs:
        raise _malformed(page, f"the section {heading.strip()!r} has no text")
    lead, *body = paragraphs
    return Passage(slug(heading), page, heading.strip(), lead, " ".join(body), questions)


def _malformed(page: str, reason: str) -> StorageError:
    return StorageError(
        f"the handbook page {page} is malformed: {reason}",
        hint="install from the stick again: it replaces the documentation",
    )
