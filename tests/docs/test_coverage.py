"""An undocumented command, setting, variable or error fails here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import pytest

import appliance.config as config
from appliance import errors
from appliance.config import environment
from tests.conftest import REPOSITORY
from tests.docs.reference import render

REFERENCE = REPOSITORY / "docs/reference"


def test_the_command_reference_is_what_the_commands_say() -> None:
    page = (REFERENCE / "cli.md").read_text()
    assert page == render(), "run scripts/gen-reference"


def test_every_command_and_option_has_a_help_text() -> None:
    page = render()
    for number, line in enumerate(page.splitlines()):
        if line.startswith("* `"):
            assert ": " in line, f"line {number} of the reference says nothing: {line}"


def settings() -> Iterator[tuple[str, object]]:
    for section in ("api", "engine", "audit", "money"):
        kind = {f.name: f for f in fields(config.Config)}[section].default_factory
        assert callable(kind)
        for setting in fields(kind):  # type: ignore[arg-type]
            yield f"{section}.{setting.name}", setting.default


@pytest.mark.parametrize(("name", "default"), list(settings()))
def test_every_setting_is_documented_with_its_default(name: str, default: object) -> None:
    rows = rows_of("configuration.md")
    assert name in rows, f"docs/reference/configuration.md lacks {name}"
    assert rows[name][0] == f"`{default}`"


@pytest.mark.parametrize("name", [n for n in vars(environment) if n.endswith("_VARIABLE")])
def test_every_environment_variable_is_documented(name: str) -> None:
    assert f"`{getattr(environment, name)}`" in (REFERENCE / "configuration.md").read_text()


def error_classes(base: type[errors.ApplianceError]) -> Iterator[type[errors.ApplianceError]]:
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from error_classes(child)


@pytest.mark.parametrize("kind", list(error_classes(errors.ApplianceError)), ids=lambda k: k.code)
def test_every_error_is_documented_with_its_exit_status(kind: type[errors.ApplianceError]) -> None:
    rows = rows_of("errors.md")
    assert kind.code in rows, f"docs/reference/errors.md lacks {kind.code}"
    assert rows[kind.code][0] == str(kind.exit_status)


def rows_of(page: str) -> dict[str, list[str]]:
    """First column (without backticks) -> the other columns, of all tables of `page`."""
    rows = {}
    for line in (REFERENCE / page).read_text().splitlines():
        if line.startswith("| `"):
            first, *rest = (cell.strip() for cell in line.strip("|").split(" | "))
            rows[first.strip("` ")] = rest
    return rows
