"""How many key heads each layer has and how wide, where Gemma's layers differ in it.

Owns the two ways in which config.json says so: wider heads of the layers that see everything, or
`per_layer_config`, in which a layer's number may have zeros in front.
"""

from __future__ import annotations

from collections.abc import Sequence

from installer.checkpoint.graph.kinds import FULL
from installer.checkpoint.settings import Settings

Sizes = tuple[int, int]
"""Key heads, and numbers of one."""
_DIGITS = 4
"""Of a layer's number, at most."""


def read_heads(config: Settings, names: Sequence[str], plain: Sizes, wide: Sizes) -> list[Sizes]:
    """Of each layer, whose kinds are `names`: `plain`, or `wide` where it sees everything.

    Where `per_layer_config` is, it says what is not plain.
    """
    special = config.section("per_layer_config")
    found = []
    for layer, name in enumerate(names):
        kv_heads, head_dim = wide if name == FULL and special is None else plain
        own = _of_layer(special, layer) if special is not None else None
        if own is not None:
            head_dim = own.integer("head_dim", head_dim)
            kv_heads = own.integer("num_key_value_heads", kv_heads)
            own.finish()
        found.append((kv_heads, head_dim))
    if special is not None:
        special.finish()
    return found


def _of_layer(special: Settings, layer: int) -> Settings | None:
    """What is said of a single layer."""
    keys = (f"{layer:0{width}}" for width in range(1, _DIGITS + 1))
    return next((special.section(key) for key in keys if key in special), None)
