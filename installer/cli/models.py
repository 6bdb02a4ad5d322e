"""`appliance models …`: the models of a node."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from installer.cli.bundle import draft_fields, parity_text
from installer.cli.output import (
    EvenWithdrawnOption,
    JsonOption,
    RootOption,
    err,
    node_config,
    node_layout,
    out,
    print_fields,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from appliance.model_store import ModelStore, StoredBundle
    from appliance.trust.withdrawn import Withdrawn
    from installer.models import Models

app = typer.Typer(name="models", help="Add, choose and remove models.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="Version of the model.")]


@app.callback()
def group() -> None:
    """Add, choose and remove models."""


@app.command()
def add(
    source: Annotated[
        Path, typer.Argument(metavar="BUNDLE|MEDIA", help="Directory of a bundle or of media.")
    ],
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify, import and compile; a new model is served at once, a new version when activated."""
    models = _models(root, as_json=as_json)
    with models.changing():
        verified = models.verified(source.absolute())
        models.foretell([bundle.manifest for bundle in verified])
        added = models.add(verified)
        models.heed_withdrawals()
        for bundle in added:
            models.record("models.add", bundle)
            if bundle.name not in models.store.active():
                models.activate(bundle.name, bundle.version)
        _finish(models, added, as_json=as_json)


@app.command("list")
def list_models(root: RootOption = None, as_json: JsonOption = False) -> None:
    """List every version of every model on this node."""
    store, withdrawn = _store(root), _withdrawn(root)
    active = store.active()
    rows = [_document(bundle, active, withdrawn) for bundle in store.bundles()]
    if as_json:
        print_json({"generation": store.current_generation().number, "models": rows})
        return
    rows = [row | _for_people(row) for row in rows]
    print_table(
        ["NAME", "VERSION", "KIND", "ACTIVE", "SIZE", "BUILT"],
        [
            (r["name"], r["version"], r["kind"], r["active"], r["size"], r["created"])
            for r in rows
        ],
        empty="There are no models: `appliance models add` brings one.",
    )  # fmt: skip
    for row in rows:
        if row["withdrawn"]:
            out.print(f"\n{row['name']} {row['version']} was {row['withdrawn']}.", markup=False)


@app.command()
def show(
    name: NameArgument,
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="Version; else the active one.")
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one model."""
    store = _store(root)
    bundle = store.get(name, version)
    document = _document(bundle, store.active(), _withdrawn(root)) | _details(bundle)
    if as_json:
        print_json(document)
    else:
        shown = document | _for_people(document)
        print_fields({name: value for name, value in shown.items() if value is not None})


@app.command()
def activate(
    name: NameArgument,
    version: VersionArgument,
    even_withdrawn: EvenWithdrawnOption = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve this version from now on; running requests end on the version they began with."""
    models = _models(root, as_json=as_json)
    with models.changing():
        models.foretell([models.store.get(name, version).manifest])
        models.activate(name, version, even_withdrawn=even_withdrawn)
        _finish(models, [models.store.get(name, version)], as_json=as_json)


@app.command("compile")
def compile_active(root: RootOption = None, as_json: JsonOption = False) -> None:
    """Compile the active models for this machine as it is now: after a new driver, or another GPU.

    What fits already is kept.
    """
    models = _models(root, as_json=as_json)
    with models.changing():
        loaded = models.recompile()
        active = list(models.store.active().values())
        computed = {bundle.digest: models.computed(bundle) for bundle in active}
        _tell(models, active, loaded=loaded, computed=computed, as_json=as_json)


@app.command()
def rollback(root: RootOption = None, as_json: JsonOption = False) -> None:
    """Go back to the models that were served before the last change."""
    models = _models(root, as_json=as_json)
    with models.changing():
        before = models.store.active()
        models.rollback()
        now = models.store.active()
        _finish(models, list(now.values()), as_json=as_json)
    if not as_json:
        for name in sorted(before.keys() - now.keys()):
            out.print(f"{name} {before[name].version}: no longer served", markup=False)


@app.command()
def remove(
    name: NameArgument,
    version: VersionArgument,
    even_active: Annotated[
        bool, typer.Option("--active", help="Also if it is being served: it then no longer is.")
    ] = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete one version from the disk."""
    models = _models(root, as_json=as_json)
    with models.changing():
        freed = models.remove(name, version, even_active=even_active)
    if as_json:
        print_json({"name": name, "version": version, "freed_bytes": freed})
    else:
        out.print(f"{name} {version} is gone, {freed / 1024**2:.1f} MiB are free", markup=False)


def _finish(models: "Models", changed: "list[StoredBundle]", *, as_json: bool) -> None:
    """Tell the engine, then the operator."""
    _tell(models, changed, loaded=models.serve_active(), as_json=as_json)


def _tell(
    models: "Models",
    changed: "list[StoredBundle]",
    *,
    loaded: bool,
    as_json: bool,
    computed: "Mapping[str, str] | None" = None,
) -> None:
    """`computed`: digest -> by what, and why by nothing faster, where that was asked."""
    active = models.store.active()
    if as_json:
        rows = [_document(bundle, active, models.withdrawn) for bundle in changed]
        print_json({"loaded": loaded, "models": rows})
        return
    for bundle in changed:
        how = f", {by}" if (by := (computed or {}).get(bundle.digest)) else ""
        out.print(f"{bundle.name} {bundle.version}: {outcome(bundle, active)}{how}", markup=False)
    if not loaded:
        err.print("note: the engine does not run; it loads the active models when it starts")


def outcome(bundle: "StoredBundle", active: "Mapping[str, StoredBundle]") -> str:
    """What became of it; for what is not served, how it would be."""
    served = active.get(bundle.name)
    if served is not None and served.digest == bundle.digest:
        return "active"
    command = f"`appliance models activate {bundle.name} {bundle.version}`"
    instead = f" in place of {served.version}" if served is not None else ""
    return f"added; {command} serves it{instead}"


def _models(root: Path | None, *, as_json: bool) -> "Models":
    from installer.models import Models
    from installer.node import node_at
    from installer.progress import NoProgress, TerminalProgress

    config = node_config(root)
    progress = NoProgress() if as_json else TerminalProgress(err)
    return Models(config, node_at(config.layout), progress)


def _store(root: Path | None) -> "ModelStore":
    from appliance.model_store import ModelStore

    return ModelStore(node_layout(root).models)


def _withdrawn(root: Path | None) -> "Withdrawn":
    from appliance.trust.store import TrustStore

    return TrustStore(node_layout(root).trust).withdrawn()


def _document(
    bundle: "StoredBundle", active: "Mapping[str, StoredBundle]", withdrawn: "Withdrawn"
) -> dict[str, object]:
    found = withdrawn.bundle(bundle.name, bundle.version)
    served = active.get(bundle.name)
    manifest = bundle.manifest
    return {
        "name": bundle.name,
        "version": bundle.version,
        "kind": manifest.kind,
        "active": served is not None and served.digest == bundle.digest,
        "size": sum(entry.size for entry in manifest.files),
        "created": f"{datetime.fromtimestamp(manifest.created, UTC):%Y-%m-%d}",
        "digest": bundle.digest,
        "withdrawn": str(found) if found is not None else None,
    }


def _for_people(document: "Mapping[str, object]") -> dict[str, object]:
    """What of it people read in another form."""
    size = document["size"]
    assert isinstance(size, int)
    return {"active": "yes" if document["active"] else "no", "size": f"{size / 1e6:.1f} MB"}


def _details(bundle: "StoredBundle") -> dict[str, object]:
    manifest = bundle.manifest
    adapter = manifest.as_adapter
    if adapter is not None:
        return {
            "family": manifest.family,
            "license": manifest.license,
            "base": adapter.base.name,
            "base_checkpoint": adapter.base.checkpoint_sha256,
            "rank": adapter.rank,
            "targets": " ".join(target.name for target in adapter.targets),
            "files": len(manifest.files),
        }
    lengths = manifest.spec
    return {
        "family": manifest.family,
        "precision": manifest.graph.precision,
        **draft_fields(manifest),
        "license": manifest.license,
        "context_length": getattr(lengths, "context_length", None)
        or getattr(lengths, "max_length", None),
        "files": len(manifest.files),
        "parity": parity_text(manifest),
    }
