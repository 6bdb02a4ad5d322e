"""A compiled embedder or reranker opened on what it was compiled for.

Owns the choice between the processor and the GPU, which the artifact's record makes, and how many
tokens are computed at once. Refuses a session that took another provider, and a GPU without room
for the longest text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import Reading
from appliance.compiler import Artifact
from appliance.compiler.memory import reading_bytes
from appliance.compiler.probe import encoder_feed, run_outputs
from appliance.config import EngineSettings
from appliance.engine.device.device import Device, cuda_devices
from appliance.engine.device.spread import on_each
from appliance.engine.session import open_cuda_reader, open_session
from appliance.errors import CapacityError

_SPARE_BYTES = 1 << 29
"""Left on a GPU for kernels that CUDA loads."""


@dataclass(frozen=True, slots=True)
class OpenedReader:
    """A model that reads texts, ready to run.

    Attributes:
        session: runs whole batches; what goes in and comes out is in this machine's memory.
        token_budget: tokens of a batch at most, padding included; one text may have more.
    """

    session: ort.InferenceSession
    token_budget: int

    def close(self) -> None:
        """Nothing is held outside the session."""


def open_readers(
    artifact: Artifact,
    spec: Reading,
    settings: EngineSettings,
    devices: Callable[[], Sequence[Device]] = cuda_devices,
) -> list[OpenedReader]:
    """Open the artifact on its provider: once, or on each GPU that has room for it.

    Raises UnsupportedError, CapacityError.
    """
    if artifact.provider == "cpu":
        settings = settings.sized(gpu=False)
        session = open_session(artifact.directory, settings.threads)
        return [OpenedReader(session, settings.token_budget)]
    assert artifact.provider == "cuda", "no model that reads texts is compiled for another"
    assert artifact.record.fit is not None, "what is compiled for a GPU was found to fit"

    def open_on(devices: Sequence[Device], _first: OpenedReader | None) -> OpenedReader:
        (device,) = devices
        session = open_cuda_reader(artifact.directory, gpu=device.number)
        budget = tokens_at_once(spec, settings.sized(gpu=True), device)
        warm(session, spec, budget)
        return OpenedReader(session, budget)

    return on_each(open_on, artifact.record.fit, devices())


def tokens_at_once(spec: Reading, settings: EngineSettings, device: Device) -> int:
    """What the settings say, or less, so that it fits beside what is on the device.

    Raises CapacityError if not even the longest text does.
    """
    fit = max(0, device.free_bytes() - _SPARE_BYTES) // reading_bytes(spec)
    if fit < spec.max_length:
        raise CapacityError(
            f"the GPU has room for texts of {fit} tokens; the model reads {spec.max_length}",
            hint="serve fewer models (`appliance models remove NAME VERSION --active`), or lower "
            "engine.cache_bytes so that chat models leave room",
        )
    return min(settings.token_budget, fit)


def warm(session: ort.InferenceSession, spec: Reading, budget: int) -> None:
    """Compute the largest batch there can be: the session then holds the memory for all others,
    which a model that is loaded later would take, and the first caller waits for no kernels.

    Raises UnsupportedError.
    """
    ids = np.zeros((max(1, budget // spec.max_length), spec.max_length), np.int64)
    run_outputs(session, encoder_feed(session, ids, np.ones_like(ids)))
