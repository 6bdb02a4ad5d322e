"""Telling the engine which models to serve: what is loaded, what is unloaded, and in which order.

Owns the order. A new version is loaded beside the old one, so that nobody is interrupted, unless
there is no memory for both (`memory`); an adapter comes after its base and goes before it. Refuses
to start an engine that does not run: it loads what is active by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.bundle.manifest import Manifest
from appliance.config import Layout
from appliance.errors import UnavailableError
from appliance.model_store import ModelStore, StoredBundle
from appliance.pb import engine_v1_pb2 as pb
from installer import memory
from installer.engine_client import EngineClient, connect
from installer.progress import Progress

_Serving = dict[str, pb.Model]
"""Name -> what the engine serves."""


def tell_engine(layout: Layout, store: ModelStore, progress: Progress, *, gpu: bool) -> bool:
    """Make the engine serve exactly the active models; False if it does not run."""
    wanted = store.active()
    try:
        with connect(layout.engine_socket) as engine:
            serving = {m.name: m for m in engine.models() if m.state == pb.MODEL_STATE_SERVING}
            for name in sorted(serving.keys() - wanted.keys()):
                if serving[name].base_model:
                    engine.unload(name)
                    del serving[name]
            _make_room(engine, serving, wanted, store, progress, gpu=gpu)
            for name, bundle in sorted(wanted.items(), key=_adapters_last):
                if name not in serving or serving[name].bundle_digest != bundle.digest:
                    progress.step(f"loading {name} {bundle.version}")
                    engine.load(name)
            for name in serving.keys() - wanted.keys():
                engine.unload(name)
    except UnavailableError:
        return False
    return True


def manifests_of(bundles: Mapping[str, StoredBundle]) -> dict[str, Manifest]:
    """Name -> manifest."""
    return {name: bundle.manifest for name, bundle in bundles.items()}


def _make_room(
    engine: EngineClient,
    serving: _Serving,
    wanted: Mapping[str, StoredBundle],
    store: ModelStore,
    progress: Progress,
    *,
    gpu: bool,
) -> None:
    """Unload of `serving` what there is no memory for beside what is to be loaded."""
    known = {bundle.digest: bundle for bundle in store.bundles()}
    loaded = {
        name: known[model.bundle_digest].manifest
        for name, model in serving.items()
        if model.bundle_digest in known
    }
    for name in memory.in_the_way(loaded, manifests_of(wanted), gpu=gpu):
        adapters = [other for other, model in serving.items() if model.base_model == name]
        for each in (*adapters, name):
            progress.step(f"unloading {each}, to make room")
            engine.unload(each)
            del serving[each]


def _adapters_last(named: tuple[str, StoredBundle]) -> tuple[bool, str]:
    name, bundle = named
    return bundle.manifest.kind == "adapter", name
