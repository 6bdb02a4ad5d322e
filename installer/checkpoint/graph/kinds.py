"""What the layers of one decoder can differ in: their angles, how far back they see, how sharply.

Owns the reading of the keys that say which layer is of which kind. Refuses a kind without a name
here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from appliance.errors import CheckpointError
from installer.checkpoint.graph.rope import Rope, read_rope
from installer.checkpoint.graph.sharpening import Sharpening
from installer.checkpoint.settings import Settings

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Attributes:
    rope: the angles of its queries and keys.
    window: how many tokens each token sees, itself among them; None is all before it.
    sharpening: what its queries are multiplied by far from the start; None is nothing.
    chunk: in how large a piece of the text each token sees what is before it; None is the whole.
        The window is as wide.
    kv_heads, head_dim: of its heads, where layers differ in them; None is as of all.
    shares: the layer whose keys and values it reads, having none of its own; None is itself.
    early: the angles by which a family turns queries and keys itself, in front of what it does to
        them before the kernel turns them by `rope`; None is not.
    """

    rope: Rope
    window: int | None = None
    sharpening: Sharpening | None = None
    chunk: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    shares: int | None = None
    early: Rope | None = None

    def within(self, context: int) -> LayerKind:
        """The same for sequences of `context` tokens, which a wide window does not bound."""
        if self.window is None or self.window < context:
            return self
        return replace(self, window=None, chunk=None)


Kinds = tuple[LayerKind, ...]
"""Of each layer in turn."""


def read_kinds(config: Settings, kinds: Mapping[str, LayerKind], default: Sequence[str]) -> Kinds:
    """What `layer_types` names, or `default`, which has a name for each layer.

    Raises CheckpointError naming the key if it has another length or a kind not in `kinds`.
    """
    names = config.texts("layer_types", default)
    if len(names) != len(default) or not kinds.keys() >= set(names):
        raise CheckpointError(
            f"config.json: layer_types has {len(names)} layers of {', '.join(sorted(set(names)))}, "
            "which is not supported",
            hint=f"this model needs {len(default)} of {', '.join(sorted(kinds))}",
        )
    return tuple(kinds[name] for name in names)


def read_alike(config: Settings, head_dim: int) -> Kinds:
    """All layers see all tokens before them."""
    layers = config.integer("num_hidden_layers")
    kinds = {FULL: LayerKind(read_rope(config, head_dim))}
    return read_kinds(config, kinds, [FULL] * layers)


def read_turned(config: Settings, layers: int, usual: int) -> tuple[bool, ...]:
    """Of each layer whether it knows positions: what `no_rope_layers` says, in spite of its name.

    Where it says nothing, every so many layers one does not, `usual` of the architecture.
    """
    every = config.integer("no_rope_layer_interval", usual)
    said = config.ids("no_rope_layers") or [int(at % every != 0) for at in range(1, layers + 1)]
    if len(said) != layers or not {0, 1} >= set(said):
        raise CheckpointError(
            f"config.json: no_rope_layers is not a 0 or 1 for each of {layers} layers",
            hint="the checkpoint's config.json belongs to another model",
        )
    return tuple(turned == 1 for turned in said)


def read_dense(
    config: Settings, layers: int, usual: Collection[int] = frozenset()
) -> frozenset[int]:
    """The layers that have a feed-forward and no experts: those that `mlp_layer_types` says, or
    `usual`. Raises CheckpointError naming the key."""
    default = ["dense" if layer in usual else "sparse" for layer in range(layers)]
    kinds = config.texts("mlp_layer_types", default)
    if len(kinds) != layers or not {"dense", "sparse"} >= set(kinds):
        raise CheckpointError(
            f"config.json: mlp_layer_types has {len(kinds)} layers of "
            f"{', '.join(sorted(set(kinds)))}",
            hint=f"this model needs {layers} of dense, sparse",
        )
    return frozenset(layer for layer, kind in enumerate(kinds) if kind == "dense")


def read_late_windows(config: Settings, head_dim: int) -> Kinds:
    """As Qwen2 and Qwen3 say it: layers from `max_window_layers` on see a window, if asked to."""
    layers, rope = config.integer("num_hidden_layers"), read_rope(config, head_dim)
    kinds, names = {FULL: LayerKind(rope)}, [FULL] * layers
    if config.flag("use_sliding_window", False):
        kinds[SLIDING] = LayerKind(rope, config.integer("sliding_window"))
        first = config.whole("max_window_layers")
        names = [SLIDING if layer >= first else FULL for layer in range(layers)]
    config.ignore("sliding_window", "max_window_layers")
    return read_kinds(config, kinds, names)
