"""The handbook says what is true of this release, and says it briefly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

import appliance.config as config
from appliance import errors
from guide_recipe.sources import HANDBOOK
from installer.ask.passages import Passage, read_handbook
from installer.cli.app import app

PASSAGES = read_handbook(HANDBOOK)
TEXT = "\n".join(page.read_text() for page in sorted(HANDBOOK.glob("*.md")))
each = pytest.mark.parametrize("passage", PASSAGES, ids=lambda p: p.id)


@each
def test_a_lead_is_a_short_answer(passage: Passage) -> None:
    sentences = re.findall(r"[.:](?=\s|$)", re.sub(r"`[^`]*`", "", passage.lead))
    assert 1 <= len(sentences) <= 4
    assert len(passage.lead) <= 260


@each
def test_a_section_lists_other_ways_to_ask(passage: Passage) -> None:
    assert len(passage.questions) >= 5


def spans() -> Iterator[str]:
    """What stands between back-ticks and calls the command."""
    flat = " ".join(TEXT.split())
    yield from (span for span in re.findall(r"`([^`]+)`", flat) if span.startswith("appliance "))


@pytest.mark.parametrize("span", sorted(set(spans())))
def test_every_command_in_the_handbook_exists(span: str) -> None:
    command: Any = typer.main.get_command(app)
    _, *words = span.split()
    while words and hasattr(command, "commands"):
        word = words.pop(0)
        assert word in command.commands, f"{span}: there is no `{word}`"
        command = command.commands[word]
    options = {name for parameter in command.params for name in parameter.opts}
    for word in words:
        assert not word.startswith("--") or word in options, f"{span}: there is no {word}"


def test_the_exit_statuses_are_those_of_the_error_tree() -> None:
    (passage,) = (p for p in PASSAGES if p.id == "errors-and-exit-statuses")
    named = {int(number) for number in re.findall(r"\b\d+\b", passage.lead)}
    statuses = {kind.exit_status for kind in errors.ApplianceError.__subclasses__()}
    assert named == statuses


def test_the_settings_are_real() -> None:
    named = re.findall(r"((?:`\w+`(?: and )?)+) in `\[(\w+)\]`", " ".join(TEXT.split()))
    assert len(named) >= 2
    node = config.Config(config.Layout(HANDBOOK))
    for settings, section in named:
        for setting in re.findall(r"\w+(?=`)", settings):
            assert hasattr(getattr(node, section), setting), f"{section}.{setting}"


def test_the_default_port_is_named() -> None:
    assert f"127.0.0.1:{config.ApiSettings().listen_port}" in TEXT
