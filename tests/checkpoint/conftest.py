"""Small checkpoints and the bundles built from them, each once per test run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import Manifest, decode
from appliance.bundle.specs import DecoderSpec
from installer.checkpoint import build_bundle
from installer.checkpoint.quantize import Precision
from installer.checkpoint.reader import Checkpoint
from tests.checkpoint.drawn_embedders import write_mistral_embedder, write_qwen2_embedder
from tests.checkpoint.families import find_models
from tests.conftest import BUILD_CACHE, BuildOnce
from tests.fakes.checkpoints import write_bert, write_llama, write_qwen2, write_qwen3
from tests.fakes.encoder_checkpoints import (
    write_cross_encoder,
    write_qwen3_embedding,
    write_qwen3_reranker,
    write_xlm_roberta,
)
from tests.fakes.newer_encoders import (
    write_modernbert,
    write_modernbert_reranker,
    write_mpnet,
    write_mpnet_reranker,
)
from tests.fakes.pooled_decoders import (
    write_embedding_gemma,
    write_embedding_gemma2,
    write_eurobert,
)
from tests.fakes.rotary_encoders import write_gte, write_gte_reranker, write_nomic

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

WRITERS: dict[str, Callable[[Path], Path]] = {
    "qwen3": write_qwen3,
    "qwen3-untied-bf16-sharded": lambda d: write_qwen3(
        d, seed=1, tied=False, dtype="bfloat16", max_shard_bytes=60_000
    ),
    "qwen3-odd-widths": lambda d: write_qwen3(
        d, seed=2, hidden=80, heads=6, kv_heads=3, head_dim=32, intermediate=200, layers=3
    ),
    "qwen2": write_qwen2,
    "qwen2-fp16": lambda d: write_qwen2(d, seed=3, tied=False, dtype="float16"),
    "llama": write_llama,
    "llama-3.1-rope": lambda d: write_llama(d, seed=4, rope_scaling=LLAMA3_ROPE),
    "llama-linear-rope": lambda d: write_llama(
        d, seed=5, tied=True, rope_scaling={"rope_type": "linear", "factor": 2.0}
    ),
    "bert": write_bert,
    "bert-cls-raw": lambda d: write_bert(d, seed=6, pooling="cls", normalize=False),
}
_FOUND = find_models()
MAIN = [name for name in WRITERS if not name.startswith("bert")]
"""Decoders that differ in more than numbers: every form of their graphs is tested."""
MAIN += [
    name for name, model in _FOUND.items() if model.main and not (model.recurrent or model.uneven)
]
ROUNDED = ["qwen3", "qwen3-odd-widths", "qwen2", "llama"]
"""Decoders whose rounded grades are measured for the parity table, too."""
ROUNDED += [name for name, model in _FOUND.items() if model.main]
OF_FLOATS = frozenset(name for name, model in _FOUND.items() if model.floats)
"""Decoders whose cache is never of 8 bits."""
BYTES = [name for name in ROUNDED if name not in OF_FLOATS]
NATIVE = ["qwen3", "qwen2", "llama", "gemma3", "mistral", "phi3", "phi4-mini"]
NATIVE += ["qwen2-late-windows", "apertus", "glm4", "granite", "ministral3", "olmo2", "olmo3"]
NATIVE += ["cohere2", "smollm3", "exaone4"]
"""Of these, what native operators compute in 4 bits: dense, of widths that are whole blocks."""
RECURRENT = [name for name, model in _FOUND.items() if model.recurrent]
"""Decoders with layers that keep a running state."""
UNEVEN = [name for name, model in _FOUND.items() if model.uneven]
"""Decoders whose layers differ in their heads."""
BLIND = [name for name, model in _FOUND.items() if model.blind]
"""Decoders that see, but for `w8a8` and `w4a8`."""
DECODERS = [*MAIN, *(name for name in _FOUND if name not in (*MAIN, *BLIND))]
WRITERS |= {name: model.write for name, model in _FOUND.items()}
EXPERTS = [name for name, model in _FOUND.items() if model.experts and model.on_gpus]
"""Decoders whose tokens choose among experts, and that have graphs for a GPU."""
OFF_GPUS = [name for name, model in _FOUND.items() if not model.on_gpus]
"""Decoders that the processor alone computes."""
WRITERS |= {
    "xlm-roberta": write_xlm_roberta,
    "roberta-cls": lambda d: write_xlm_roberta(d, seed=7, family="roberta", pooling="cls"),
    "qwen3-embedding": write_qwen3_embedding,
    "qwen3-embedding-window": lambda d: write_qwen3_embedding(d, seed=11, window=7),
    "cross-encoder": write_cross_encoder,
    "cross-encoder-roberta": lambda d: write_cross_encoder(d, seed=8, family="roberta"),
    "cross-encoder-xlm-roberta-logits": lambda d: write_cross_encoder(
        d, seed=9, family="xlm-roberta", sigmoid=False
    ),
    "qwen3-reranker": write_qwen3_reranker,
    "qwen3-reranker-untied": lambda d: write_qwen3_reranker(d, seed=10, tied=False),
}
NEWER_EMBEDDERS: dict[str, Callable[[Path], Path]] = {
    "modernbert": write_modernbert,
    "modernbert-newer-words": lambda d: write_modernbert(
        d, seed=12, pooling="cls", layer_types=True
    ),
    "mpnet": write_mpnet,
    "embedding-gemma": write_embedding_gemma,
    "embedding-gemma2": write_embedding_gemma2,
    "eurobert": write_eurobert,
    "gte": write_gte,
    "nomic": write_nomic,
    "mistral-embedding": write_mistral_embedder,
    "qwen2-embedding": write_qwen2_embedder,
}
NEWER_CROSS_ENCODERS: dict[str, Callable[[Path], Path]] = {
    "modernbert-reranker": write_modernbert_reranker,
    "modernbert-reranker-cls": lambda d: write_modernbert_reranker(d, seed=20, pooling="cls"),
    "mpnet-reranker": write_mpnet_reranker,
    "gte-reranker": write_gte_reranker,
}
WRITERS |= NEWER_EMBEDDERS | NEWER_CROSS_ENCODERS


@dataclass(frozen=True, slots=True)
class Built:
    """A checkpoint and its bundle."""

    checkpoint: Path
    bundle: Path

    @property
    def manifest(self) -> Manifest:
        return decode((self.bundle / MANIFEST_NAME).read_bytes())

    @property
    def graph(self) -> Path:
        return self.bundle / self.manifest.graph.path

    @property
    def spec(self) -> DecoderSpec:
        spec = self.manifest.decoder
        assert spec is not None
        return spec


BuildBundle = Callable[[str, Precision], Built]
OpenConfig = Callable[[Mapping[str, Any]], Checkpoint]


@pytest.fixture(scope="session")
def built(build_once: BuildOnce) -> BuildBundle:
    """`built(name, precision)`: one of WRITERS' checkpoints, and its unsigned bundle."""
    return builds(build_once)


def builds(build_once: BuildOnce) -> BuildBundle:
    """What `built` is, for tests of other packages as well: one bundle for the whole run."""

    def build(name: str, precision: Precision) -> Built:
        def write(directory: Path) -> None:
            WRITERS[name](directory / "it")

        checkpoint = build_once(f"checkpoint-{name}", write) / "it"

        def pack(directory: Path) -> None:
            build_unsigned(checkpoint, directory / "it", precision=precision)

        return Built(checkpoint, build_once(f"bundle-{name}-{precision}", pack) / "it")

    return build


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The published checkpoint of all-MiniLM-L6-v2, which scripts/fetch-minilm put there."""
    directory = BUILD_CACHE / "minilm"
    if not (directory / ".fetched").exists():
        pytest.fail("run scripts/fetch-minilm first")
    return directory


@pytest.fixture
def open_config(tmp_path: Path) -> OpenConfig:
    """`open_config(document)`: a checkpoint that has no more than this config.json yet."""

    def opened(document: Mapping[str, Any]) -> Checkpoint:
        (tmp_path / "config.json").write_text(json.dumps(dict(document)))
        return Checkpoint(tmp_path)

    return opened


def build_unsigned(
    checkpoint: Path, out: Path, *, precision: Precision | None = None, max_file_bytes: int = 10**9
) -> Manifest:
    """A bundle with fixed identity."""
    return build_bundle(
        checkpoint,
        out,
        name="tiny",
        version="1.0",
        precision=precision,
        signer=None,
        created=1_700_000_000,
        max_file_bytes=max_file_bytes,
    )
