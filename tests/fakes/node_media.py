"""Media for a node of the tests: the real programs, two tiny models, and bundles to add later."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from installer.checkpoint import build_bundle
from installer.checkpoint.adapter_build import build_adapter
from installer.signing import BundleSigner
from tests.conftest import BuildOnce
from tests.fakes.adapters import write_adapter
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.encoder_checkpoints import write_cross_encoder
from tests.fakes.media import build_media, make_trust
from tests.fakes.vision_checkpoints import write_qwen3_vl

CHAT, EMBEDDING = "tiny-chat", "tiny-bert"
SEES, RANKS, GUESSED, ADAPTER = "tiny-sees", "tiny-ranks", "tiny-guessed", "tiny-adapter"
"""One of each other kind; the adapter is for the model that another guesses for."""
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

    def further(self, name: str) -> Path:
        """A bundle of another kind, not on the media."""
        return self.directory / "further" / name


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
    _further(made, signer)
    pythons = {NODE_PYTHON, ".".join(platform.python_version_tuple()[:2])}
    build_media(made.media, [chat, embedding], directory / "trust", pythons=sorted(pythons))


def _further(made: NodeMedia, signer: BundleSigner) -> None:
    checkpoints = made.directory / "further-checkpoints"
    build = partial(build_bundle, version="1.0", signer=signer)
    build(write_qwen3_vl(checkpoints / SEES), made.further(SEES), name=SEES)
    build(write_cross_encoder(checkpoints / RANKS), made.further(RANKS), name=RANKS)
    guessed = write_qwen3(checkpoints / GUESSED)
    draft = write_qwen3(checkpoints / "draft", hidden=64, seed=1)
    out = made.further(GUESSED)
    manifest = build(guessed, out, name=GUESSED, precision="w8a8", adapters=True, draft=draft)
    build_adapter(
        write_adapter(checkpoints / ADAPTER, guessed), made.further(ADAPTER),
        name=ADAPTER, version="1.0", base=out, base_manifest=manifest, signer=signer,
    )  # fmt: skip


def _chat_bundle(out: Path, version: str, signer: BundleSigner, *, seed: int) -> None:
    checkpoint = out.with_name(f"{out.name}-checkpoint")
    write_qwen3(checkpoint, seed=seed)
    build_bundle(checkpoint, out, name=CHAT, version=version, precision="int4", signer=signer)
