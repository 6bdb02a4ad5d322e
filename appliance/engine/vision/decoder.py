"""Images as they come in, decoded in a process of its own.

Owns that process, starts it with the first image, and kills it when one takes too much processor
time, gets too little, or breaks it; the next image starts a new one. Blocking: call it from a
thread.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.bundle.specs import VisionSpec
from appliance.engine.vision.worker import HEADER, MEDIA_TYPES
from appliance.errors import UnavailableError
from appliance.prompting.child import Child, ChildLostError

MAX_SECONDS = 10.0
"""Of processor time."""
MOST_SHOWN = 3 << 19
"""Pixels that an image is scaled down to at most, whatever a model would take: attention among
its patches takes time with the square of them. 1.5 Mi make 6,144 patches of 16 x 16."""
_ANSWER_BYTES = 64 << 20

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Image:
    """An image as a request has it."""

    media_type: str
    data: bytes


class RefusedImageError(Exception):
    """What is wrong with an image, in words for its sender."""


class ImageDecoder:
    """Decodes and scales images as `vision` wants them."""

    def __init__(self, vision: VisionSpec, *, seconds: float = MAX_SECONDS) -> None:
        self._wanted: dict[str, object] = {
            "factor": vision.patch * vision.merge,
            "least": min(vision.min_pixels, MOST_SHOWN),
            "most": min(vision.max_pixels, MOST_SHOWN),
        }
        named = {"sizing": vision.sizing, "resample": vision.resample}
        self._wanted |= {name: said for name, said in named.items() if isinstance(said, str)}
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._closed = False

    def decode(self, image: Image) -> Pixels:
        """Red, green and blue, [height, width, 3].

        Raises RefusedImageError; UnavailableError with code `machine_busy` if the process was not
        let run.
        """
        if image.media_type not in MEDIA_TYPES:
            raise RefusedImageError(f"images of type {image.media_type!r} are not read")
        with self._lock:
            if self._closed:
                raise RefusedImageError("the model is being unloaded")
            worker = self._worker = self._worker or _Worker()
            try:
                about, data = worker.ask(
                    {"media_type": image.media_type, **self._wanted}, image.data, self._seconds
                )
            except UnavailableError:
                self._end()
                raise
            except ChildLostError as lost:
                self._end()
                raise RefusedImageError(f"decoding it was stopped: {lost}") from None
        if "error" in about:
            raise RefusedImageError(str(about["error"]))
        pixels = np.frombuffer(data, np.uint8)
        return pixels.reshape(int(str(about["height"])), int(str(about["width"])), 3)

    def close(self) -> None:
        """End the process, for good."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()


class _Worker:
    """The process, and how one speaks with it."""

    def __init__(self) -> None:
        self._child = Child("appliance.engine.vision.worker")
        self.kill = self._child.kill

    def ask(
        self, about: dict[str, object], data: bytes, seconds: float
    ) -> tuple[dict[str, object], bytes]:
        """Send one image, wait for its answer. Raises as `Child` does."""
        text = json.dumps(about).encode("ascii")
        self._child.begin(seconds)
        self._child.send(HEADER.pack(len(text), len(data)) + text + data)
        sizes = HEADER.unpack(self._child.receive(HEADER.size))
        if sum(sizes) > _ANSWER_BYTES:
            raise ChildLostError("its process said too much")
        try:
            answer = json.loads(self._child.receive(sizes[0]))
        except ValueError:
            raise ChildLostError("its process broke") from None
        return answer, self._child.receive(sizes[1])
