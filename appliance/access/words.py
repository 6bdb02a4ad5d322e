"""What may be a name here: something that reads well in a list."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.errors import UsageError

MAX_NAME = 64
DEFAULT_PROJECT = "proj_default"
"""Id of the project of every key that names none, and of every key made before there were any."""


def check_words(words: Iterable[str], what: str) -> None:
    """Raise UsageError unless each of `words` can be `what`."""
    for word in words:
        if not (word.strip() == word and word.isprintable() and 0 < len(word) <= MAX_NAME):
            raise UsageError(
                f"{word!r} cannot be {what}",
                hint=f"use 1 to {MAX_NAME} printable characters, no space at either end",
            )
