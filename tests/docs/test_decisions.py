"""The index of decisions names each of them once, by its own title."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import REPOSITORY

_FOLDER = REPOSITORY / "docs/decisions"
_ENTRY = re.compile(r"- \[(\d{4})\]\((\d{4}-[a-z0-9-]+\.md)\) (.+)")


def test_the_index_names_each_decision_once_by_its_title() -> None:
    named = [
        match.groups()
        for line in (_FOLDER / "README.md").read_text().splitlines()
        if (match := _ENTRY.fullmatch(line))
    ]
    written = [(path.name[:4], path.name, _title(path)) for path in _FOLDER.glob("[0-9]*.md")]
    assert sorted(named) == sorted(written)


def test_no_number_is_given_twice() -> None:
    numbers = [path.name[:4] for path in _FOLDER.glob("[0-9]*.md")]
    assert len(set(numbers)) == len(numbers)


def _title(path: Path) -> str:
    first = path.read_text().splitlines()[0]
    match = re.fullmatch(rf"# {path.name[:4]}:? (.+)", first)
    assert match is not None, f"{path.name} begins with its number and title"
    return match[1]
