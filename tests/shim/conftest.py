"""One running node for each test that asks for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from tests.shim.node import Node, standing

DAY, MARGIN = 86_400, 120.0


@pytest.fixture(autouse=True)
def within_one_day() -> None:
    """Budgets and reports go by days of UTC, and months: none ends while a test runs."""
    left = DAY - time.time() % DAY
    if left < MARGIN:
        time.sleep(left)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A shim in front of a fake engine."""
    with standing(tmp_path) as made:
        yield made


@pytest.fixture
def client(node: Node) -> Iterator[openai.OpenAI]:
    """The official SDK with only base_url and key changed, checking every answer strictly."""
    with openai.OpenAI(
        base_url=node.base_url,
        api_key=node.secret,
        max_retries=0,
        _strict_response_validation=True,
    ) as made:
        yield made


@pytest.fixture
def claude(node: Node) -> Iterator[anthropic.Anthropic]:
    """Anthropic's SDK with only base_url and key changed, checking every answer strictly."""
    with anthropic.Anthropic(
        base_url=node.base_url.removesuffix("/v1"),
        api_key=node.secret,
        max_retries=0,
        _strict_response_validation=True,
    ) as made:
        yield made


@pytest.fixture
def lenient(node: Node) -> Iterator[openai.OpenAI]:
    """The official SDK as it comes.

    Its strict mode refuses what OpenAI itself sends: the null `finish_reason` in the chunks of a
    completion, and embeddings as base64, which the SDK asks for and decodes itself.
    """
    with openai.OpenAI(base_url=node.base_url, api_key=node.secret, max_retries=0) as made:
        yield made
