"""An engine over the device that every machine has, its own memory, with the CPU provider.

What the tests of the runners for CUDA and for TensorRT share; what they differ in they open
themselves.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec
from appliance.compiler.gpu_compile import Target, stages_of
from appliance.compiler.profiles import Profile
from appliance.config import EngineSettings
from appliance.engine.chat_model import ChatModel
from appliance.engine.device.budget import shape_over
from appliance.engine.device.device import HostDevice
from appliance.engine.device.pool import DevicePool
from appliance.engine.device.stages import Stage, Stages, layers_of, share_of
from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.runner import Runner
from appliance.engine.sampling import SamplingParams
from appliance.model_store import StoredBundle
from tests.checkpoint.reference import ReferenceDecoder
from tests.engine.results import Results

NEAR = 0.02
"""Share of the largest logit by which 16-bit floats may take one token for another."""
PROCESSOR = Target("CPUExecutionProvider", "cpu")
MEMORY = 256 << 20
"""Bytes of the device."""


def decoder_of(bundle: StoredBundle) -> DecoderSpec:
    assert bundle.manifest.decoder is not None
    return bundle.manifest.decoder


def open_graph(
    bundle: StoredBundle, variant: str, sizes: Mapping[str, int] | None = None
) -> ort.InferenceSession:
    """A session over the bundle's graph for `variant`; `sizes` are of dimensions that it fixes."""
    graph = bundle.manifest.variant(variant)
    assert graph is not None
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path",
        str(bundle.directory / graph.weights_folder),
    )
    return ort.InferenceSession(
        (bundle.directory / graph.path).read_bytes(), options, providers=["CPUExecutionProvider"]
    )


def cut_for(
    count: int, spec: DecoderSpec, graph: Path, weights: Path, folder: Path
) -> list[ort.InferenceSession]:
    """Sessions over the graph in stages for so many devices, as they are compiled into `folder`."""
    folder.mkdir()
    return stages_of(graph.read_bytes(), weights, folder, [PROCESSOR] * count, spec)


def placed(
    sessions: Sequence[ort.InferenceSession],
    decoder: DecoderSpec,
    settings: EngineSettings,
    devices: Sequence[HostDevice],
) -> Stages:
    """A stage on each device, and its share of as much cache as the settings ask for."""
    layers = [layers_of(session) for session in sessions]
    shares = [(on, share_of(own, decoder)) for on, own in zip(devices, layers, strict=True)]
    shape = shape_over(shares, decoder, settings, 1 << 20)
    assert (shape.slots, shape.capacity) == (settings.max_sequences, settings.max_context)
    pools = [DevicePool(decoder, shape, on, own) for on, own in zip(devices, layers, strict=True)]
    return Stages([Stage(*both) for both in zip(sessions, pools, strict=True)])


def open_engine(bundle: StoredBundle, profile: Profile) -> ort.InferenceSession:
    """A session over the `trt` graph with what of the profile's shapes does not vary fixed."""
    fixed = {"capacity": profile.capacity}
    for name, size in (("batch", profile.batch), ("tokens", profile.tokens)):
        if size.least == size.most:
            fixed[name] = size.most
    return open_graph(bundle, "trt", fixed)


def engine_over(
    runner: Runner,
    chat: ChatModel,
    vocab: int,
    *,
    slots: int,
    capacity: int,
    token_budget: int,
    draft_tokens: int = 0,
    snapshots: int = 0,
) -> LLMEngine:
    """An engine that speaks as `chat` does.

    Its clock says that every step takes as long as any other, so drafts always seem worth it.
    """
    return LLMEngine(
        runner, chat.tokenizer, chat.prompting, vocab_size=vocab, slots=slots, capacity=capacity,
        token_budget=token_budget, max_waiting=99, draft_tokens=draft_tokens, snapshots=snapshots,
        clock=itertools.count(1.0).__next__,
    )  # fmt: skip


def beginning_alike(count: int, chance: random.Random) -> list[Generation]:
    """Greedy requests, of which some begin as others do."""
    common = [chance.randrange(300) for _ in range(140)]
    return [
        Generation(
            number,
            common[: chance.choice([0, 0, 140])]
            + [chance.randrange(300) for _ in range(chance.randint(1, 50))],
            SamplingParams(temperature=0, max_tokens=chance.randint(4, 24)),
            cache_namespace="a",
        )
        for number in range(count)
    ]


def assert_the_references(results: Results, requests: list[Generation], checkpoint: Path) -> None:
    """Every token is the likeliest of the reference's, or as near as 16 bits can tell."""
    reference = ReferenceDecoder(checkpoint)
    for request in requests:
        tokens = results.tokens(request.call)
        assert tokens
        logits = reference.logits([*request.prompt, *tokens])[len(request.prompt) - 1 : -1]
        chosen = logits[np.arange(len(tokens)), tokens]
        assert (logits.max(-1) - chosen <= NEAR * np.abs(logits).max(-1)).all()
