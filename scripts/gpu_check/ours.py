"""The worker that measures this project's engine: `python -m gpu_check.ours ROOT NAME`.

Opens the model as the engine daemon does and steps it in this process, as the peer is called in
its own: nothing is said over a network on either side.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from appliance.compiler import Artifact, open_artifact
from appliance.compiler.artifact import WEIGHTS_NAME
from appliance.config import EngineSettings, Layout
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.device.device import CudaDevice
from appliance.engine.generation import Generation
from appliance.engine.sampling import SamplingParams
from appliance.model_store import ModelStore
from appliance.trust.node_key import NodePublicKey
from gpu_check.results import PROCESSOR
from gpu_check.workloads import Workload, serve

_COPIED = 2 << 30
_CACHE = 40 << 30
"""Bytes, of which the first model takes half; the peer shares the card."""


def main(root: Path, name: str) -> None:
    layout = Layout(root)
    bundle = ModelStore(layout.models).get(name)
    artifact = open_artifact(
        layout.artifacts, bundle.digest, NodePublicKey.load(layout.node / "node.pub")
    )
    bandwidth = _bandwidth() if artifact.provider != "cpu" else 0.0
    start = time.perf_counter()
    settings = EngineSettings(max_context=1024, cache_bytes=_CACHE)
    model = ChatModel(bundle, artifact, settings, CacheBudget(_CACHE))
    loaded = time.perf_counter() - start
    _Run(model).run(Workload(2, 16, 4), 0)
    serve(
        _Run(model).run,
        provider=artifact.provider,
        device=device_of(artifact),
        reasons=[f"{no.provider}: {no.message}" for no in artifact.record.reasons],
        compared=_compared(artifact),
        fingerprint=artifact.record.fingerprint,
        weights=(artifact.directory / WEIGHTS_NAME).stat().st_size,
        token_bytes=model.cache_shape.token_bytes,
        slots=model.cache_shape.slots,
        recorded=model.recorded,
        bandwidth=bandwidth,
        loaded=loaded,
    )
    model.close()


class _Run:
    def __init__(self, model: ChatModel) -> None:
        self._engine = model.engine
        assert model.bundle.manifest.decoder is not None
        self._vocab = model.bundle.manifest.decoder.vocab_size

    def run(self, workload: Workload, seed: int) -> float:
        """Seconds from the first request to the last token."""
        params = SamplingParams(max_tokens=workload.wanted, temperature=0)
        start = time.perf_counter()
        for call, prompt in enumerate(workload.prompts(self._vocab, seed)):
            self._engine.add(Generation(call, prompt, params))
        while self._engine.has_work:
            self._engine.step()
        return time.perf_counter() - start


def device_of(artifact: Artifact) -> str:
    """The GPU's name, or PROCESSOR."""
    if artifact.provider == "cpu":
        return PROCESSOR
    return artifact.record.fingerprint["gpu"]


def _compared(artifact: Artifact) -> dict[str, float] | None:
    compared = artifact.record.compared
    return None if compared is None else {"error": compared.error, "bound": compared.bound}


def _bandwidth() -> float:
    """Bytes a second that a copy inside the card's memory reads and writes."""
    device = CudaDevice()
    source, target = device.allocate(_COPIED), device.allocate(_COPIED)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        device.copy_rows(target, source, (_COPIED, _COPIED), (1, _COPIED))
        best = max(best, 2 * _COPIED / (time.perf_counter() - start))
    device.release(source)
    device.release(target)
    return best


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
