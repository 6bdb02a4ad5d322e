"""An adapter's weights, read from its bundle.

Refuses files whose bytes are not the signed ones, and numbers that could spoil the rows of other
sequences: all adapters of a batch are computed together and masked, and what is infinite is
infinite times zero, too.
"""

from __future__ import annotations

import numpy as np

from appliance.bundle.specs import AdapterSpec
from appliance.engine.adapters.bank import AdapterWeights, Place
from appliance.engine.bundle_files import read_checked
from appliance.engine.slot_pool import Array
from appliance.errors import VerificationError
from appliance.model_store import StoredBundle

_LARGEST = 65504.0
"""The largest 16-bit float: published adapters are far below it."""


def read_adapter(bundle: StoredBundle) -> AdapterWeights:
    """The weights of an adapter's bundle. Raises DigestError, VerificationError."""
    spec = bundle.manifest.as_adapter
    assert spec is not None, "only adapters are read"
    downs: dict[Place, Array] = {}
    ups: dict[Place, Array] = {}
    for layer, path in enumerate(spec.files):
        numbers = np.frombuffer(read_checked(bundle, path), "<f4")
        _check(numbers, path)
        _divide(spec, layer, numbers, downs, ups)
    return AdapterWeights(bundle.digest, spec.rank, downs, ups)


def _divide(
    spec: AdapterSpec,
    layer: int,
    numbers: Array,
    downs: dict[Place, Array],
    ups: dict[Place, Array],
) -> None:
    """One layer's file into its matrices, as the manifest says they lie."""
    at = 0
    for target in spec.targets:
        for matrices, width in ((downs, target.inner), (ups, target.outer)):
            end = at + spec.rank * width
            matrices[layer, target.name] = numbers[at:end].reshape(spec.rank, width)
            at = end
    assert at == len(numbers), "the manifest was checked"


def _check(numbers: Array, path: str) -> None:
    if not (np.isfinite(numbers).all() and np.abs(numbers).max() <= _LARGEST):
        raise VerificationError(
            f"{path} has numbers that are not finite, or larger than {_LARGEST:.0f}",
            path=path,
            hint="the adapter is damaged: build it again from its checkpoint",
            code="adapter_weights",
        )
