"""The machine's memory, and what the models that are served together take of it.

Owns the sum, for the check before an installation and for every change of what is served. Refuses
more than there is: the kernel would end the engine, at each start again, and all models with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from appliance.bundle.footprint import loaded_bytes
from appliance.bundle.manifest import Manifest
from appliance.errors import CapacityError
from installer.room import size

BASE_BYTES = 512 * 1024 * 1024
"""Both daemons without a model."""


def there() -> int:
    """Bytes that are built into this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def needed(served: Mapping[str, Manifest], *, gpu: bool) -> int:
    """About how many bytes the models `served` take together, the daemons included."""
    return BASE_BYTES + sum(loaded_bytes(manifest, gpu=gpu) for manifest in served.values())


def require(served: Mapping[str, Manifest], *, before: Mapping[str, Manifest], gpu: bool) -> None:
    """Raise CapacityError if `served` are more than this machine has memory for, and than before.

    A node that gets by with less than is reckoned here may change what it serves for the smaller.
    """
    if needed(served, gpu=gpu) > max(there(), needed(before, gpu=gpu)):
        raise CapacityError(
            f"{', '.join(sorted(served))} need {size(needed(served, gpu=gpu))} of memory together, "
            f"this machine has {size(there())}",
            hint="serve fewer models (`appliance models remove NAME VERSION --active`), or ask the "
            "packager for a smaller grade",
        )
