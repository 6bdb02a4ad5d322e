"""A compiled vision tower opened on what it was compiled for."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from appliance.config import EngineSettings
from appliance.engine.device.device import cuda_devices
from appliance.engine.session import (
    VISION_CUDA_NAME,
    VISION_NAME,
    open_cuda_reader,
    open_session,
)


def open_tower(artifact: Path, settings: EngineSettings) -> ort.InferenceSession:
    """The tower of the artifact, on a GPU or the processor. Raises UnsupportedError.

    What it sees goes through this machine's memory, so the decoder may be on any GPU.
    """
    if (artifact / VISION_CUDA_NAME).exists():
        return open_cuda_reader(artifact, VISION_CUDA_NAME, gpu=cuda_devices()[0].number)
    return open_session(artifact, settings.sized(gpu=False).threads, VISION_NAME)
