"""A checkpoint cut to its first layers.

Owns what "the first layers" are: enough that every kind of layer is among them (full and sliding
attention, dense and sparse feed-forward) and all that an image feeds, and two at least. A vision
tower is left whole, and so is a model whose layers cannot do without later ones. Reads nothing but
config.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

Document = dict[str, object]

_LAYERS = "num_hidden_layers"
_NESTED = "text_config"
_SIGHT, _DEEP = "vision_config", "deepstack_visual_indexes"
"""States of so many layers of a tower are added behind the decoder's first ones."""
_FEWEST = 2
_DENSE_FIRST = ("first_k_dense_replace", "moe_layer_start_index", "num_hash_layers")
"""So many layers are dense, or choose by a table, before the first that is not."""
_PERIODS = (
    *("sliding_window_pattern", "full_attention_interval", "no_rope_layer_interval"),
    *("decoder_sparse_step", "moe_layer_interval", "interleave_moe_layer_step"),
)
"""Every so many layers one is of another kind."""
_UNSAID = {"no_rope_layers": 4}
"""Lists that mean every so many layers where they are empty."""
_WHOLE = ("num_kv_shared_layers", "hidden_size_per_layer_input")
"""Of models whose last layers read earlier ones' keys, or whose layers share a table: uncut."""
_ATTENDING = "attn_layer_indices"
_NUMBERS = ("moe_layers", "mlp_only_layers", _ATTENDING, "ple_layer_ids")
"""Numbers of layers, and not something of each."""
_COUNTED_FROM_ONE = "ple_layer_ids"
"""Numbers of layers from 1 on, of those that have tables of n-grams."""
_SOURCES = "kv_source_layers"
"""Of each layer, whose keys it reads: no kind, and never a later one's."""
_PATTERN = "hybrid_override_pattern"
"""A letter for each layer."""
_OF_INDEX = "sparse_attention_config"
_OF_STATES = "linear_attn_config"
_COUNTED = ("kda_layers", "full_attn_layers")
"""Of layers with a state and without, the numbers from 1 on."""
_LAYER_NAME = re.compile(
    r"(?!(?:model\.)?(?:visual|vision\w*|audio\w*)\.)(?:.*\.)?layers?\.(\d+)\..*"
)


@dataclass(frozen=True, slots=True)
class Shallow:
    """The configuration of the first `layers` layers."""

    config: Document
    layers: int

    def keeps(self, tensors: Iterable[str]) -> list[str]:
        """Those of the names that do not belong to a later layer."""
        found = ((name, _LAYER_NAME.fullmatch(name)) for name in tensors)
        return [name for name, match in found if match is None or int(match[1]) < self.layers]


def cut(config: Document, fewest: int = _FEWEST) -> Shallow | None:
    """`config` with its first layers alone; None if it does not say how many it has."""
    nested = config.get(_NESTED)
    if _LAYERS not in config and isinstance(nested, dict):
        inner = cut(nested, max(fewest, _fed_by_sight(config)))
        return inner and Shallow(config | {_NESTED: inner.config}, inner.layers)
    total = config.get(_LAYERS)
    if type(total) is not int or total <= 0:
        return None
    layers = min(total, max(fewest, _enough(config, total)))
    first = _first(config, total, layers)
    return Shallow(config | first | _of_layers(config, layers) | {_LAYERS: layers}, layers)


def _first(config: Document, total: int, layers: int) -> Document:
    """Lists with a value for each layer, also those of an index, as they are for the first."""
    cut: Document = {key: value[:layers] for key, value in _lists(config, total)}
    inner = config.get(_OF_INDEX)
    if isinstance(inner, dict):
        cut[_OF_INDEX] = inner | _first(inner, total, layers)
    counted = config.get(_COUNTED_FROM_ONE)
    if isinstance(counted, list):
        cut[_COUNTED_FROM_ONE] = [at for at in counted if at <= layers]
    states = config.get(_OF_STATES)
    if isinstance(states, dict):
        kinds = {key: [at for at in states.get(key, ()) if at <= layers] for key in _COUNTED}
        cut[_OF_STATES] = states | kinds
    return cut


def _of_layers(config: Document, layers: int) -> Document:
    """Objects with keys for single layers, without those that are cut off."""
    return {
        key: {at: of for at, of in value.items() if int(at) < layers}
        for key, value in config.items()
        if isinstance(value, dict) and value and all(str(at).isdecimal() for at in value)
    }


def _fed_by_sight(config: Document) -> int:
    """How many of the first layers take something of an image."""
    sight = config.get(_SIGHT)
    deep = sight.get(_DEEP) if isinstance(sight, dict) else None
    return len(deep) if isinstance(deep, list) else 0


def _enough(config: Document, total: int) -> int:
    """Layers among which there is one of every kind."""
    if any(config.get(key) for key in _WHOLE):
        return total
    enough = _FEWEST
    for key in _DENSE_FIRST:
        dense = config.get(key)
        if type(dense) is int and dense < total:
            enough = max(enough, dense + 1)
    for key in _PERIODS:
        period = config.get(key)
        if type(period) is int:
            enough = max(enough, period)
    for key, period in _UNSAID.items():
        if config.get(key) == []:
            enough = max(enough, min(period, total))
    attending = config.get(_ATTENDING)
    if isinstance(attending, list) and attending:
        enough = max(enough, 1 + min(int(layer) for layer in attending))
    counted = config.get(_COUNTED_FROM_ONE)
    if isinstance(counted, list) and counted:
        enough = max(enough, min(counted))
    states = config.get(_OF_STATES)
    if isinstance(states, dict):
        enough = max(enough, *(min(states.get(key) or [0]) for key in _COUNTED))
    inner = config.get(_OF_INDEX)
    lists = chain(_lists(config, total), _lists(inner, total) if isinstance(inner, dict) else ())
    kinds = (_prefix_with_all(value) for key, value in lists if key != _SOURCES)
    return max([enough, *kinds])


def _lists(config: Document, total: int) -> Iterator[tuple[str, Sequence[object]]]:
    """What says something of each layer."""
    for key, value in config.items():
        said = key == _PATTERN if isinstance(value, str) else key not in _NUMBERS
        if said and isinstance(value, list | str) and len(value) == total:
            yield key, value


def _prefix_with_all(kinds: Sequence[object]) -> int:
    """Length of the shortest beginning that has every value of the list."""
    seen = [repr(kind) for kind in kinds]
    return 1 + max(seen.index(kind) for kind in set(seen))


def float_bytes(shapes: Iterable[tuple[int, ...]]) -> int:
    """Bytes of tensors of these shapes as 32-bit floats."""
    return 4 * sum(math.prod(shape) for shape in shapes)
