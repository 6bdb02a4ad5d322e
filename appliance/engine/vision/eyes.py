"""The sight of one model: its decoder of images, its tower, and room for what the tower made.

Blocking: call it from a thread. Images are seen one at a time, beside the steps of the model. What
waits with a request in the queue is bounded; beyond that requests are refused until some end.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from appliance.bundle.specs import VisionSpec
from appliance.compiler.grid import Floats, feed
from appliance.engine.vision.decoder import Image, ImageDecoder, Pixels, RefusedImageError
from appliance.engine.vision.kept import KeptFeatures
from appliance.engine.vision.patches import grid_of, patches
from appliance.engine.vision.sight import Placed, Sight, expanded, key_of
from appliance.errors import CapacityError, RequestError

MOST_IMAGES = 32
"""In one prompt."""
ROOM_BYTES = 2 << 30
"""Of features that requests hold, waiting and running."""
KEPT_BYTES = 512 << 20
"""Of features that are kept for the next turn of a conversation."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt with its images decoded, not yet seen by the tower.

    Attributes:
        ids: the prompt, each image as many tokens as it takes.
        starts: the first token of each image.
    """

    ids: list[int]
    starts: list[int]
    images: list[Pixels]


class Eyes:
    """Decodes and sees."""

    def __init__(
        self, session: ort.InferenceSession, vision: VisionSpec, *, room: int = ROOM_BYTES
    ) -> None:
        self._session = session
        self._vision = vision
        self._decoder = ImageDecoder(vision)
        self._room = room
        self._free = room
        self._lock = threading.Lock()
        self._one = threading.Lock()
        self._kept = KeptFeatures(KEPT_BYTES)
        levels, _, width = session.get_outputs()[0].shape
        self._token_bytes = levels * width * np.dtype(np.float32).itemsize

    @property
    def free_bytes(self) -> int:
        """Room that no request holds."""
        return self._free

    def show(self, prompt: Sequence[int], images: Sequence[tuple[str, Image]]) -> Shown:
        """Decode the images, each with the parameter it came as, and place them in `prompt`.

        Raises RequestError.
        """
        token = self._vision.image_token
        if len(images) > MOST_IMAGES:
            raise RequestError(
                f"there are {len(images)} images, more than {MOST_IMAGES}", param="messages"
            )
        if list(prompt).count(token) != len(images):
            raise RequestError(
                "the chat template does not show every image",
                param="messages",
                hint="give images in messages of the user",
            )
        pixels = [self._decode(param, image) for param, image in images]
        grids = [grid_of(image, self._vision) for image in pixels]
        around = self._vision.around if isinstance(self._vision.around, tuple) else ()
        ids, starts = expanded(prompt, token, grids, around)
        return Shown(ids, starts, pixels)

    def see(self, shown: Shown, stopped: Callable[[], bool], namespace: str = "") -> Sight:
        """Let the tower see the images, but those that it saw lately in `namespace`.

        Raises CapacityError, and RequestError once `stopped`.
        """
        tokens = sum(grid_of(image, self._vision).tokens for image in shown.images)
        size = tokens * self._token_bytes
        self._take(size)
        try:
            placed = [
                self._place(start, image, namespace, stopped)
                for start, image in zip(shown.starts, shown.images, strict=True)
            ]
            sight = Sight(len(shown.ids), self._vision.image_token, placed)
        except BaseException:
            self._give_back(size)
            raise
        # Whoever holds it last, a sequence or a call that was given up, gives the room back.
        weakref.finalize(sight, self._give_back, size)
        return sight

    def close(self) -> None:
        """End the decoder's process."""
        self._decoder.close()

    def _decode(self, param: str, image: Image) -> Pixels:
        try:
            return self._decoder.decode(image)
        except RefusedImageError as error:
            raise RequestError(
                f"this image is refused: {error}",
                param=param,
                hint="send a whole PNG, JPEG, WebP or GIF and name its type",
                code="invalid_image",
            ) from None

    def _place(
        self, start: int, image: Pixels, namespace: str, stopped: Callable[[], bool]
    ) -> Placed:
        key = key_of(image)
        with self._one:
            features = self._kept.get(namespace, key)
            if features is None:
                if stopped():
                    raise RequestError("the caller has gone", param="messages")
                features = self._look(image)
                self._kept.put(namespace, key, features)
        return Placed(start, grid_of(image, self._vision), key, features)

    def _look(self, image: Pixels) -> Floats:
        """The tower's features of one image, [levels, tokens, width]."""
        given = feed(grid_of(image, self._vision), self._vision)
        features: Floats = self._session.run(
            None, {"patches": patches(image, self._vision), **given}
        )[0]
        return features

    def _take(self, size: int) -> None:
        with self._lock:
            if size > self._free:
                raise CapacityError(
                    "requests with images hold all the room there is for them",
                    hint="try again when some have ended, or send smaller images",
                    code="queue_full",
                )
            self._free -= size

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._free += size
            assert self._free <= self._room
