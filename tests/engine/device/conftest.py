"""What the tests of the runners for graphics processors run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import Layout
from appliance.engine.device.device import HostDevice
from appliance.model_store import ModelStore, StoredBundle
from tests.engine.device.on_host import MEMORY


@pytest.fixture
def device() -> HostDevice:
    return HostDevice(MEMORY)


@pytest.fixture
def bundle(node_root: Path) -> StoredBundle:
    return ModelStore(Layout(node_root).models).get("chat")
