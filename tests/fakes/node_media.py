"""Media for a node of the tests: the real programs, two tiny models, and bundles to add later."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from installer.checkpoint import build_bundle
from installer.signing import BundleSigner
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.media import build_media, make_trust

CHAT, EMBEDDING = "tiny-chat", "tiny-bert"
NODE_PYTHON = "3.11"
"""Of Debian 12."""


@dataclass(frozen=True, slots=True)
class NodeMedia:
    """What the packager made, below one directory."""

    directory: Path

    @property
    def media(self) -> Path:
        """With version 1.0 of both models."""
        return self.directory / "media"

    @property
    def pyz(self) -> Path:
        return self.media / "appliance.pyz"

    @property
    def newer_chat(self) -> Path:
        """A bundle of the chat model's version 2.0, not on the media."""
        return self.directory / "chat-2.0"


def node_media(build_once: BuildOnce) -> NodeMedia:
    """The media of this test run."""
    return NodeMedia(build_once("node-media", _build))


def _build(directory: Path) -> None:
    signer = make_trust(directory / "trust")
    made = NodeMedia(directory)
    chat, embedding = directory / "chat-1.0", directory / "bert-1.0"
    _chat_bundle(chat, "1.0", signer, seed=0)
    _chat_bundle(made.newer_chat, "2.0", signer, seed=1)
    checkpoint = directory / "bert-checkpoint"
    write_bert(checkpoint)
    build_bundle(
        checkpoint, embedding, name=EMBEDDING, version="1.0", precision="fp32", signer=signer
    )
    pythons = {NODE_PYTHON, ".".join(platform.python_version_tuple()[:2])}
    build_media(made.media, [chat, embedding], directory / "trust", pythons=sorted(pythons))


def _chat_bundle(out: Path, version: str, signer: BundleSigner, *, seed: int) -> None:
    checkpoint = out.with_name(f"{out.name}-checkpoint")
    write_qwen3(checkpoint, seed=seed)
    build_bundle(checkpoint, out, name=CHAT, version=version, precision="int4", signer=signer)
