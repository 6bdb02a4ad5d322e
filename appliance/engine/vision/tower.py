"""A compiled vision tower opened on what it was compiled for."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from appliance.config import EngineSettings
from appliance.engine.session import (
    VISION_CUDA_NAME,
    VISION_NAME,
    open_cuda_reader,
    open_session,
)


def open_tower(artifact: Path, settings: EngineSettings) -> ort.InferenceSession:
    """The tower of the artifact, on the GPU or the processor. Raises UnsupportedError."""
    if (artifact / VISION_CUDA_NAME).exists():
        return open_cuda_reader(artifact, VISION_CUDA_NAME)
    return open_session(artifact, settings.sized(gpu=False).threads, VISION_NAME)
