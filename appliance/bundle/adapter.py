"""Whether an adapter may be computed with a model.

Owns that question, which the packager's command, the model store and the engine all ask. What an
adapter was trained on is told by the digest of the checkpoint: it fits every grade and version of
a base that was built from those very files, under the name that it gives its base, and no other.
Pure: looks at two manifests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import Adapted, AdapterSpec
from appliance.errors import ApplianceError, ConflictError, LayoutError, UnsupportedError


def check_base(adapter: Manifest, base: Manifest) -> None:
    """Raise unless `adapter` was made for `base`, and `base` was built to serve adapters.

    ConflictError `adapter_base_differs` if it was made for another model; UnsupportedError
    `adapters_not_built`; LayoutError for shapes that are not the base's.
    """
    spec = adapter.as_adapter
    assert spec is not None, "only adapters have a base"
    wanted = (spec.base.name, spec.base.family, spec.base.checkpoint_sha256)
    if wanted != (base.name, base.family, base.checkpoint_sha256):
        raise ConflictError(
            f"{adapter.name} {adapter.version} is an adapter of {spec.base.name}, checkpoint "
            f"{spec.base.checkpoint_sha256[:12]}; {base.name} {base.version} is made from "
            f"{base.checkpoint_sha256[:12]}",
            hint="build the adapter for this base: --base names its bundle",
            code="adapter_base_differs",
        )
    built = base.graph.adapted
    if not isinstance(built, Adapted) or base.decoder is None:
        raise UnsupportedError(
            f"{base.name} {base.version} was not built to serve adapters",
            hint="build it again with `appliance bundle build --adapters`, under a new version",
            code="adapters_not_built",
        )
    there = {target.name: target for target in built.targets}
    for target in spec.targets:
        if there.get(target.name) != target:
            raise _other_shape(adapter, f"{target.name} is {target.inner} to {target.outer} wide")
    if spec.layers != base.decoder.layers:
        raise _other_shape(adapter, f"it has {spec.layers} layers")


def check_set(models: Mapping[str, Manifest]) -> None:
    """Raise unless the base of every adapter among `models` (by name) is there and is right.

    ConflictError `adapter_base_missing`, or as `check_base` does.
    """
    for manifest in models.values():
        if manifest.as_adapter is not None:
            check_base(manifest, find_base(manifest, models))


def check_any_base(adapter: Manifest, models: Collection[Manifest]) -> None:
    """Raise unless one of `models` may be the base of `adapter`.

    ConflictError `adapter_base_missing`, or what `check_base` says of the last of that name.
    """
    spec = adapter.as_adapter
    assert spec is not None, "only adapters have a base"
    named = [m for m in models if m.name == spec.base.name and m.as_adapter is None]
    refusal: ApplianceError = _missing(adapter, spec, "there")
    for base in named:
        try:
            check_base(adapter, base)
        except (ConflictError, UnsupportedError, LayoutError) as error:
            refusal = error
        else:
            return
    raise refusal


def find_base(adapter: Manifest, models: Mapping[str, Manifest]) -> Manifest:
    """The base of `adapter` among `models`. Raises ConflictError `adapter_base_missing`."""
    spec = adapter.as_adapter
    assert spec is not None, "only adapters have a base"
    base = models.get(spec.base.name)
    if base is None or base.as_adapter is not None:
        raise _missing(adapter, spec, "served")
    return base


def adapters_of(base: str, models: Mapping[str, Manifest]) -> Collection[str]:
    """Names of the adapters among `models` whose base has this name."""
    return sorted(
        name
        for name, manifest in models.items()
        if manifest.as_adapter is not None and manifest.as_adapter.base.name == base
    )


def _missing(adapter: Manifest, spec: AdapterSpec, what: str) -> ConflictError:
    return ConflictError(
        f"{adapter.name} {adapter.version} is an adapter of {spec.base.name}, "
        f"which is not {what} on this node",
        hint=f"add {spec.base.name} first, in a version built from the checkpoint "
        f"{spec.base.checkpoint_sha256}",
        code="adapter_base_missing",
    )


def _other_shape(adapter: Manifest, what: str) -> LayoutError:
    return LayoutError(
        f"the adapter {adapter.name} {adapter.version} has not the shape of its base: {what}",
        path="bundle.json",
        hint="it was not made by `appliance bundle build`; do not use it",
    )
