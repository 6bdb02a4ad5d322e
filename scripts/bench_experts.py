"""Measures whether experts cost what is chosen, not what there is.

Models of one shape and random weights, built and compiled as for a node: 8 of 128 experts, 8 of 16,
16 of 16, and plain feed-forwards as wide as the chosen ones and as all of 16 together. They are run
in turns on one thread, and the least processor time of each case is printed, so that other work on
the machine hardly shows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from safetensors.numpy import save_file

from appliance.bundle.manifest import decode
from appliance.bundle.specs import DecoderSpec
from appliance.compiler.compile import compile_bundle
from appliance.engine.session import open_session
from installer.checkpoint import build_bundle
from tests.fakes.checkpoints import write_chat_files, write_qwen3

HIDDEN, EXPERT, LAYERS, VOCAB, CAPACITY = 1024, 384, 2, 512, 512
DENSE = {"layers": LAYERS, "hidden": HIDDEN, "vocab": VOCAB, "tied": True, "heads": 16}
DENSE |= {"kv_heads": 4, "head_dim": 64}
MODELS = {
    "8 of 128": (128, 8),
    "8 of 16": (16, 8),
    "16 of 16": (16, 16),
    "plain, as wide as 8": 8 * EXPERT,
    "plain, as wide as 16": 16 * EXPERT,
}
CASES = {"one token": (1, 1), "8 sequences, one token each": (8, 1), "256 tokens": (1, 256)}

Inputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Opened:
    session: ort.InferenceSession
    spec: DecoderSpec

    def seconds(self, inputs: Inputs) -> float:
        """Processor time of one run."""
        start = time.process_time()
        self.session.run(["logits"], inputs)
        return time.process_time() - start

    def inputs(self, sequences: int, tokens: int, random: np.random.Generator) -> Inputs:
        """Sequences that are 64 tokens long already, or begin."""
        before = 64 if tokens == 1 else 0
        total = before + tokens
        cache = np.zeros((sequences, self.spec.kv_heads, total, self.spec.head_dim), np.float32)
        past = cache if before == 0 else cache[:, :, :before].copy()
        ends = np.arange(sequences, dtype=np.int64) * tokens + tokens - 1
        given: Inputs = {
            "input_ids": random.integers(0, VOCAB, (sequences, tokens)),
            "seqlens_k": np.full(sequences, total - 1, np.int32),
            "total_sequence_length": np.array(total, np.int32),
            "rows": ends,
        }
        for layer in range(self.spec.layers):
            given |= {f"past_{end}_{layer}": past for end in ("key", "value")}
        return given


def write_mixture(directory: Path, experts: int, chosen: int) -> Path:
    """A Qwen3-MoE checkpoint in bfloat16, a layer a file."""
    directory.mkdir()
    config: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": DENSE["heads"],
        "num_key_value_heads": DENSE["kv_heads"],
        "head_dim": DENSE["head_dim"],
        "intermediate_size": 8 * EXPERT,
        "moe_intermediate_size": EXPERT,
        "num_experts": experts,
        "num_experts_per_tok": chosen,
        "norm_topk_prob": True,
        "max_position_embeddings": CAPACITY,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    write_chat_files(directory, config, "bfloat16")
    where: dict[str, str] = {}
    for layer in range(LAYERS):
        weights = dict(_layer(layer, experts))
        if layer == 0:
            weights["model.embed_tokens.weight"] = _random(VOCAB, HIDDEN)
            weights["model.norm.weight"] = _ones(HIDDEN)
        file = f"model-{layer}.safetensors"
        save_file(weights, directory / file)
        where |= dict.fromkeys(weights, file)
    index = {"metadata": {}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def _layer(layer: int, experts: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    at = f"model.layers.{layer}"
    heads, kv_heads, head_dim = (int(DENSE[key]) for key in ("heads", "kv_heads", "head_dim"))
    for name, width in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        yield f"{at}.self_attn.{name}_proj.weight", _random(width * head_dim, HIDDEN)
        if name != "v":
            yield f"{at}.self_attn.{name}_norm.weight", _ones(head_dim)
    yield f"{at}.self_attn.o_proj.weight", _random(HIDDEN, heads * head_dim)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{at}.{norm}.weight", _ones(HIDDEN)
    yield f"{at}.mlp.gate.weight", _random(experts, HIDDEN)
    for expert in range(experts):
        for name in ("gate_proj", "up_proj"):
            yield f"{at}.mlp.experts.{expert}.{name}.weight", _random(EXPERT, HIDDEN)
        yield f"{at}.mlp.experts.{expert}.down_proj.weight", _random(HIDDEN, EXPERT)


_RANDOM = np.random.default_rng(0)


def _random(rows: int, columns: int) -> npt.NDArray[Any]:
    drawn = _RANDOM.standard_normal((rows, columns), dtype=np.float32)
    return (drawn / np.float32(columns**0.5)).astype(ml_dtypes.bfloat16)


def _ones(width: int) -> npt.NDArray[Any]:
    return np.ones(width, ml_dtypes.bfloat16)


def open_model(name: str, grade: str, work: Path) -> Opened:
    """Write, build, compile, open."""
    folder = work / name.replace(" ", "-")
    folder.mkdir()
    shape = MODELS[name]
    if isinstance(shape, tuple):
        checkpoint = write_mixture(folder / "checkpoint", *shape)
    else:
        options: dict[str, Any] = {**DENSE, "intermediate": shape, "context": CAPACITY}
        checkpoint = write_qwen3(folder / "checkpoint", dtype="bfloat16", **options)
    bundle, artifact = folder / "bundle", folder / "artifact"
    manifest = build_bundle(
        *(checkpoint, bundle),
        name="bench",
        version="1",
        precision=grade,  # type: ignore[arg-type]
        signer=None,
        created=0,
    )
    artifact.mkdir()
    compile_bundle(bundle, manifest, artifact)
    spec = decode((bundle / "bundle.json").read_bytes()).decoder
    assert spec is not None
    return Opened(open_session(artifact, 1), spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grade", default="int8", choices=["int8", "int4", "fp32"])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        models = {name: open_model(name, options.grade, Path(work)) for name in MODELS}
        print(f"{options.grade}, ms{'':20}" + "".join(f"{case:>30}" for case in CASES), flush=True)
        best = {name: dict.fromkeys(CASES, float("inf")) for name in models}
        for _ in range(options.rounds):
            for case, (sequences, tokens) in CASES.items():
                for name, model in models.items():
                    given = model.inputs(sequences, tokens, np.random.default_rng(1))
                    taken = model.seconds(given)
                    best[name][case] = min(best[name][case], taken)
        for name, figures in best.items():
            row = "".join(f"{1000 * figures[case]:30.2f}" for case in CASES)
            print(f"{name:28}{row}", flush=True)


if __name__ == "__main__":
    main()
