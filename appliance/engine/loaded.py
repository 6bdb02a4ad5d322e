"""A bundle in the model store becomes a model that computes, of whatever kind it is."""

from __future__ import annotations

from appliance.bundle.specs import (
    RerankSpec,
)
from appliance.compiler import Artifact
from appliance.config import EngineSettings
from appliance.engine.bundle_files import bytes_below, read_checked
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.embedding_engine import EmbeddingEngine
from appliance.engine.embedding_model import EmbeddingModel
from appliance.engine.encoder_runner import PairRunner
from appliance.engine.opened_reader import open_readers
from appliance.engine.reranker import RerankModel
from appliance.engine.tokenizer import Tokenizer
from appliance.model_store import StoredBundle

LoadedModel = ChatModel | EmbeddingModel | RerankModel


def open_model(
    bundle: StoredBundle, artifact: Artifact, settings: EngineSettings, budget: CacheBudget
) -> LoadedModel:
    """Load a verified artifact. Takes as long as reading it; call it from a thread."""
    if bundle.manifest.kind == "chat":
        return ChatModel(bundle, artifact, settings, budget)
    if bundle.manifest.kind == "rerank":
        return _open_reranker(bundle, artifact, settings)
    return EmbeddingModel(bundle, artifact, settings)


def _open_reranker(
    bundle: StoredBundle, artifact: Artifact, settings: EngineSettings
) -> RerankModel:
    manifest = bundle.manifest
    assert isinstance(manifest.reranker, RerankSpec)
    readers = open_readers(artifact, manifest.reranker, settings)
    return RerankModel(
        bundle,
        manifest.reranker,
        Tokenizer(read_checked(bundle, manifest.tokenizer)),
        [
            EmbeddingEngine(
                PairRunner(opened.session),
                token_budget=opened.token_budget,
                max_waiting=settings.max_waiting,
            )
            for opened in readers
        ],
        len(readers) * bytes_below(artifact.directory),
    )
