"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import pytest

from tests.conftest import BuildOnce
from tests.fakes.node_media import NodeMedia
from tests.fakes.node_media import node_media as build


@pytest.fixture(scope="session")
def node_media(build_once: BuildOnce) -> NodeMedia:
    """Media with the real programs and two tiny models, built once per test run."""
    return build(build_once)
