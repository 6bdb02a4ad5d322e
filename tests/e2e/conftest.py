"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import pytest

from tests.conftest import BuildOnce
from tests.e2e.prefix import Installed
from tests.e2e.prefix import installed as install_once
from tests.fakes.node_media import NodeMedia
from tests.fakes.node_media import node_media as build


@pytest.fixture(scope="session")
def node_media(build_once: BuildOnce) -> NodeMedia:
    """Media with the real programs and two tiny models, built once per test run."""
    return build(build_once)


@pytest.fixture(scope="session")
def installed(build_once: BuildOnce, node_media: NodeMedia) -> Installed:
    """An installation from these media, to take programs from."""
    return install_once(build_once, node_media)
