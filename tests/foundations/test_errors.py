"""The error tree as drawn is the error tree as it is."""

from __future__ import annotations

import re

import pytest

from appliance import errors


def tree(kind: type[errors.ApplianceError]) -> dict[str, str]:
    """Class name -> parent's name, for the classes of the module."""
    found = {}
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            found[child.__name__] = kind.__name__
            found |= tree(child)
    return found


def test_the_drawing_at_the_top_shows_every_class_under_its_parent() -> None:
    assert errors.__doc__
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([│ ]*)(?:[├└]── )?([A-Z]\w+Error)\b", line)
        if found:
            depth = (line.index(found[2]) - 4) // 4
            path[depth:] = [found[2]]
            if depth:
                drawn[found[2]] = path[depth - 1]
    assert drawn == tree(errors.ApplianceError)


def test_a_preflight_error_carries_every_blocker() -> None:
    blockers = [errors.Blocker("a", "A is wrong", "mend A"), errors.Blocker("b", "B", "mend B")]
    error = errors.PreflightError(blockers)
    assert error.blockers == tuple(blockers)
    assert error.message.startswith("2 blockers")


def test_a_preflight_error_without_blockers_is_our_own_bug() -> None:
    with pytest.raises(AssertionError):
        errors.PreflightError([])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (RuntimeError("\n  at last\n"), "at last"),
        (RuntimeError(""), "RuntimeError"),
        (KeyError(), "KeyError"),
    ],
)
def test_another_librarys_exception_is_one_line_and_never_empty(
    error: Exception, said: str
) -> None:
    assert errors.first_line(error) == said
