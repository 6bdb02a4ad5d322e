"""Images as they come in, decoded in a process of its own.

Owns that process, starts it with the first image, and kills it when one takes too long or breaks
it; the next image starts a new one. Blocking: call it from a thread.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.bundle.manifest import VisionSpec
from appliance.engine.vision.worker import HEADER, MEDIA_TYPES

MAX_SECONDS = 10.0
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
        self._wanted = {
            "factor": vision.patch * vision.merge,
            "least": min(vision.min_pixels, MOST_SHOWN),
            "most": min(vision.max_pixels, MOST_SHOWN),
        }
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._closed = False

    def decode(self, image: Image) -> Pixels:
        """Red, green and blue, [height, width, 3]. Raises RefusedImageError."""
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
            except _WorkerLostError as lost:
                worker.kill()
                self._worker = None
                raise RefusedImageError(f"decoding it was stopped: {lost}") from None
        if "error" in about:
            raise RefusedImageError(str(about["error"]))
        pixels = np.frombuffer(data, np.uint8)
        return pixels.reshape(int(str(about["height"])), int(str(about["width"])), 3)

    def close(self) -> None:
        """End the process, for good."""
        with self._lock:
            self._closed = True
            if self._worker is not None:
                self._worker.kill()
                self._worker = None


class _WorkerLostError(Exception):
    """The process died, or did not answer in time."""


class _Worker:
    """The child process and its two pipes."""

    def __init__(self) -> None:
        # Of its own process group: a Ctrl-C at the terminal is for the daemon to handle.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "appliance.engine.vision.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            process_group=0,
        )

    def ask(
        self, about: dict[str, object], data: bytes, seconds: float
    ) -> tuple[dict[str, object], bytes]:
        """Send one image, wait for its answer. Raises _WorkerLostError."""
        deadline = time.monotonic() + seconds
        text = json.dumps(about).encode("ascii")
        self._send(HEADER.pack(len(text), len(data)) + text + data, deadline)
        sizes = HEADER.unpack(self._receive(HEADER.size, deadline))
        if sum(sizes) > _ANSWER_BYTES:
            raise _WorkerLostError("its process said too much")
        try:
            answer = json.loads(self._receive(sizes[0], deadline))
        except ValueError:
            raise _WorkerLostError("its process broke") from None
        return answer, self._receive(sizes[1], deadline)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # it still held bytes that nobody will read

    def _send(self, data: bytes, deadline: float) -> None:
        assert self._process.stdin is not None
        fd = self._process.stdin.fileno()
        os.set_blocking(fd, False)
        view = memoryview(data)
        while view:
            self._wait(fd, select.POLLOUT, deadline)
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _WorkerLostError("its process ended") from None

    def _receive(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        data = bytearray()
        while len(data) < size:
            self._wait(fd, select.POLLIN, deadline)
            part = os.read(fd, size - len(data))
            if not part:
                raise _WorkerLostError("its process ended")
            data += part
        return bytes(data)

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(fd, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise _WorkerLostError("it took too long")
