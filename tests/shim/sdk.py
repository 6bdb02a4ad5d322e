"""The official SDKs with only base_url and key changed, as fixtures over a module's `node`."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import openai
import pytest

from tests.shim.node import Node


@pytest.fixture
def client(node: Node) -> Iterator[openai.OpenAI]:
    """OpenAI's, checking every answer strictly."""
    with openai.OpenAI(
        base_url=node.base_url,
        api_key=node.secret,
        max_retries=0,
        _strict_response_validation=True,
    ) as made:
        yield made


@pytest.fixture
def lenient(node: Node) -> Iterator[openai.OpenAI]:
    """OpenAI's as it comes.

    Its strict mode refuses what OpenAI itself sends: the null `finish_reason` in the chunks of a
    completion, and embeddings as base64, which the SDK asks for and decodes itself.
    """
    with openai.OpenAI(base_url=node.base_url, api_key=node.secret, max_retries=0) as made:
        yield made


@pytest.fixture
def claude(node: Node) -> Iterator[anthropic.Anthropic]:
    """Anthropic's, checking every answer strictly."""
    with anthropic.Anthropic(
        base_url=node.base_url.removesuffix("/v1"),
        api_key=node.secret,
        max_retries=0,
        _strict_response_validation=True,
    ) as made:
        yield made
