"""What towers made lately, so that a conversation that goes on about an image need not wait again.

Namespaces are those of the prefix cache and never meet: that an image was seen before is as much
a secret as that a prompt was. Not thread-safe.
"""

from __future__ import annotations

from collections import OrderedDict

from appliance.compiler.grid import Floats


class KeptFeatures:
    """Features by namespace and image, the least recently used dropped beyond `room` bytes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._used = 0
        self._kept: OrderedDict[tuple[str, int], Floats] = OrderedDict()

    def get(self, namespace: str, key: int) -> Floats | None:
        """Features of the image `key`, if they are kept. In the namespace "" none ever are."""
        found = self._kept.get((namespace, key))
        if found is not None:
            self._kept.move_to_end((namespace, key))
        return found

    def put(self, namespace: str, key: int, features: Floats) -> None:
        """Keep `features` of an image that is not kept yet."""
        if not namespace or features.nbytes > self._room:
            return
        assert (namespace, key) not in self._kept
        self._kept[namespace, key] = features
        self._used += features.nbytes
        while self._used > self._room:
            _, dropped = self._kept.popitem(last=False)
            self._used -= dropped.nbytes
