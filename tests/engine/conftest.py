"""Models that the engine's tests share: tiny, real, compiled once per run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.compiler import open_artifact
from appliance.config import EngineSettings, Layout
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.embedding_model import EmbeddingModel
from appliance.engine.loaded import LoadedModel, open_model
from appliance.engine.reranker import RerankModel
from appliance.model_store import ModelStore
from appliance.trust.node_key import NodePublicKey
from tests.checkpoint.families.gemma4 import MODELS as GEMMA4
from tests.checkpoint.families.lfm2 import MODELS as LFM2
from tests.checkpoint.families.llama4 import MODELS as LLAMA4
from tests.checkpoint.families.nemotron_h import MODELS as NEMOTRON
from tests.checkpoint.families.qwen3_5 import MODELS as QWEN3_5
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.encoder_checkpoints import (
    write_cross_encoder,
    write_qwen3_embedding,
    write_qwen3_reranker,
)
from tests.fakes.engine_node import EngineNode
from tests.fakes.newer_encoders import write_modernbert
from tests.fakes.pooled_decoders import write_embedding_gemma

OpenChat = Callable[..., ChatModel]


def build_node(root: Path) -> None:
    """The checkpoints are left beside the node's files, for the reference implementation."""
    node = EngineNode(root)
    node.add(write_qwen3(root / "chat"), name="chat")
    node.add(root / "chat", name="bytes", precision="w8a8")
    node.add(root / "chat", name="halves", precision="w4a8")
    node.add(write_qwen3(root / "pair", intermediate=90), name="pair", precision="w8a8")
    node.add(QWEN3_5["qwen3.5"].write(root / "states"), name="states")
    node.add(root / "states", name="state-bytes", precision="w8a8")
    node.add(LFM2["lfm2"].write(root / "tails"), name="tails", precision="w8a8")
    node.add(NEMOTRON["nemotron-h"].write(root / "mixers"), name="mixers")
    node.add(GEMMA4["gemma4-small"].write(root / "uneven"), name="uneven")
    node.add(root / "uneven", name="uneven-bytes", precision="w8a8")
    node.add(LLAMA4["llama4"].write(root / "chunks"), name="chunks")
    node.add(write_bert(root / "words"), name="words")
    node.add(write_qwen3_embedding(root / "last"), name="last")
    node.add(write_modernbert(root / "windows"), name="windows")
    node.add(write_embedding_gemma(root / "dense"), name="dense")
    node.add(write_cross_encoder(root / "cross"), name="cross")
    node.add(write_qwen3_reranker(root / "judge"), name="judge")


@pytest.fixture(scope="module", autouse=True)
def _patient_trials() -> Iterator[None]:
    """Grammars are tried by a process that gives way to all others. Where the tests share their
    machine it may get a second of processor time in minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.engine.grammar.trial.SECONDS", 300.0)
        yield


@pytest.fixture(scope="session")
def node_root(build_once: BuildOnce) -> Path:
    return build_once("engine-node", build_node)


@pytest.fixture
def open_chat(node_root: Path) -> Iterator[OpenChat]:
    """Opens a chat model with given settings; closed after the test.

    `chat` is in fp32, `bytes` the same model in w8a8 with an 8-bit cache, `halves` in w4a8.
    `pair` is in w8a8, too, with layers of a width that native operators do not take: it has two
    graphs on any processor. `states` and `state-bytes` have layers that keep a running state, in
    fp32 and w8a8; those of `tails`, in w8a8, remember their last inputs alone, and those of
    `mixers` are one block each, some of them a feed-forward. Of `uneven` and `uneven-bytes` layers
    differ in their heads, and some read others' keys; those of `chunks` see a chunk of the text.
    """
    with ExitStack() as stack:

        def open_it(name: str = "chat", **settings: int) -> ChatModel:
            defaults = {"cache_bytes": 64 << 20, "threads": 1}
            model = open_model_of(node_root, name, EngineSettings(**(defaults | settings)))
            assert isinstance(model, ChatModel)
            stack.callback(model.close)
            return model

        yield open_it


@pytest.fixture
def embedding_model(node_root: Path) -> EmbeddingModel:
    model = open_model_of(node_root, "words", EngineSettings(threads=1))
    assert isinstance(model, EmbeddingModel)
    return model


@pytest.fixture
def last_token_model(node_root: Path) -> EmbeddingModel:
    """Qwen3-Embedding in small."""
    model = open_model_of(node_root, "last", EngineSettings(threads=1))
    assert isinstance(model, EmbeddingModel)
    return model


@pytest.fixture
def open_reranker(node_root: Path) -> Callable[[str], RerankModel]:
    """Opens `cross`, a cross-encoder, or `judge`, which is Qwen3-Reranker in small."""

    def open_it(name: str) -> RerankModel:
        model = open_model_of(node_root, name, EngineSettings(threads=1))
        assert isinstance(model, RerankModel)
        return model

    return open_it


def open_model_of(root: Path, name: str, settings: EngineSettings) -> LoadedModel:
    """A compiled model of the node at `root`."""
    layout = Layout(root)
    bundle = ModelStore(layout.models).get(name)
    key = NodePublicKey.load(layout.node / "node.pub")
    artifact = open_artifact(layout.artifacts, bundle.digest, key)
    return open_model(bundle, artifact, settings, CacheBudget.from_settings(settings))
