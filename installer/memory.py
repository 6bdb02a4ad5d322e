"""The machine's memory, and what the models that are served together take of it.

Owns the sum, for the check before an installation and for every change of what is served, and which
models have to go before what comes is loaded, because both at once would be too much. Refuses
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


def in_the_way(
    before: Mapping[str, Manifest], after: Mapping[str, Manifest], *, gpu: bool
) -> list[str]:
    """Models of `before` that must be unloaded before those of `after` are loaded beside them.

    What goes for good comes before what is replaced, which callers would miss meanwhile; and of
    each the largest first, so that they are few. Empty where there is memory for all at once.
    """
    leaving = {
        name: loaded_bytes(manifest, gpu=gpu)
        for name, manifest in before.items()
        if after.get(name) != manifest
    }
    over = needed(after, gpu=gpu) + sum(leaving.values()) - there()
    names = []
    for name in sorted(leaving, key=lambda name: (name in after, -leaving[name], name)):
        if over > 0 and leaving[name]:
            names.append(name)
            over -= leaving[name]
    return names


def interruptions(
    before: Mapping[str, Manifest], after: Mapping[str, Manifest], *, gpu: bool
) -> list[str]:
    """What to say, before anything is copied, of models that are not served for a while."""
    return [
        f"{name} {before[name].version} and {after[name].version} do not fit into this machine's "
        f"memory together: while one takes the other's place, {name} is not served"
        for name in in_the_way(before, after, gpu=gpu)
        if name in after
    ]
