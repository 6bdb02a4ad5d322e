"""The media of `node_media`, with programs for GPU nodes besides."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from appliance.config import Layout
from appliance.trust.store import TrustStore
from installer import pyz
from installer.media import Media, open_media
from installer.staging import PYTHON
from tests.conftest import BuildOnce
from tests.fakes.gpu_wheels import fake_gpu_wheels
from tests.fakes.media import build_media, make_trust
from tests.fakes.node_media import NodeMedia, node_media


def gpu_node_media(build_once: BuildOnce) -> NodeMedia:
    """The media of this test run, for this interpreter."""
    first = node_media(build_once)

    def build(directory: Path) -> None:
        shutil.copytree(first.directory / "trust", directory / "trust")
        made = fake_gpu_wheels(directory / "wheels", pythons=(PYTHON,), tensorrt=True)
        build_media(
            directory / "media",
            [first.directory / "chat-1.0", first.directory / "bert-1.0"],
            directory / "trust",
            pythons=[PYTHON],
            wheel_cache=made.cache,
            targets=["cuda13"],
            locks=made.locks,
        )

    return NodeMedia(build_once("gpu-node-media", build))


def runtime_media(build_once: BuildOnce) -> NodeMedia:
    """Media without models, with the runtimes and hardly any other program: quick to install."""

    def build(directory: Path) -> None:
        make_trust(directory / "trust")
        made = fake_gpu_wheels(
            directory / "wheels", pythons=(PYTHON,), tensorrt=True, only=["onnxruntime"]
        )
        build_media(
            directory / "media",
            [],
            directory / "trust",
            pythons=[PYTHON],
            wheel_cache=made.cache,
            targets=["cuda13"],
            locks=made.locks,
        )

    return NodeMedia(build_once("gpu-runtime-media", build))


def trusted(media: NodeMedia, layout: Layout) -> Media:
    """Open `media` with the anchor in their own installer, and let the node at `layout` trust it.

    What `appliance.pyz` does that runs from them; tests that call `install` in their own process
    have no anchor inside.
    """
    anchor = pyz.root_of(media.pyz)
    return open_media(media.media, TrustStore(layout.trust), anchor, datetime.now(UTC))
