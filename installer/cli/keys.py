"""`appliance keys …`: who may call the API, what they may use, and how much."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.errors import ApplianceError, ConflictError, NotFoundError, UsageError
from installer.cli import limits, reserves
from installer.cli.names import note_unknown_models
from installer.cli.output import (
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
from installer.cli.spans import moment, shown, span

if TYPE_CHECKING:
    from appliance.access import KeyInfo, KeyStore, NewKey
    from appliance.config import Config, Layout

app = typer.Typer(name="keys", help="Hand out, limit and revoke API keys.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="ID", help="ID from `appliance keys list`.")]
_DAY_SECONDS = 86_400
_RESERVED = "appliance:"
"""What tags of keys begin with that the node makes for itself."""


@app.callback()
def group() -> None:
    """Hand out, limit and revoke API keys."""


@app.command()
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The program or team that will use the key.")
    ],
    project: Annotated[
        str, typer.Option("--project", help="Name or ID of the project that it belongs to.")
    ] = "default",
    owner: Annotated[str, typer.Option("--owner", help="Who answers for it.")] = "",
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A word of your own.")] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="A model it may use; all if absent.")
    ] = None,
    api: Annotated[
        list[str] | None,
        typer.Option("--api", help="An API it may call, for example chat; all if absent."),
    ] = None,
    priority: Annotated[
        bool, typer.Option("--priority", help="It may ask to be served before other keys.")
    ] = False,
    admin: Annotated[
        bool, typer.Option("--admin", help="It opens the administration API, and no model.")
    ] = False,
    expires: Annotated[
        str | None, typer.Option("--expires", help="30d, 12h, or a day such as 2027-01-31 (UTC).")
    ] = None,
    days: Annotated[
        int | None, typer.Option("--days", min=1, help="Days until it expires; never if absent.")
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an API key and show its secret, this one time."""
    from appliance.access import new_key
    from appliance.audit import admin_event

    config = node_config(root)
    if any(word.startswith(_RESERVED) for word in tag or ()):
        raise UsageError(
            f"tags that begin with {_RESERVED} are the node's own", hint="take another word"
        )
    with open_store(config.layout) as store:
        key = new_key(
            name,
            expires=_expiry(expires, days),
            kind="admin" if admin else "api",
            project=store.projects.active(project).id,
            owner=owner,
            tags=tag or (),
            models=model or None,
            apis=api or None,
            priority=priority,
        )
        # First the record, then the key: no key exists without one.
        admin_event(
            config.layout,
            config.audit,
            "keys.create",
            target=key.info.id,
            reason=f"{key.info.kind} {key.info.project}",
        )
        store.add(key)
        _show_new(key, store.get(key.info.id), as_json=as_json)
    if not as_json:
        note_unknown_models(config.layout, model or ())


@app.command("list")
def list_keys(
    every: Annotated[
        bool, typer.Option("--all", help="Also the revoked ones: every key there ever was.")
    ] = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the API keys, without the secrets and without the revoked ones."""
    with open_store(node_layout(root)) as store:
        known = store.list()
        keys = [key for key in known if every or key.revoked is None]
        hidden = len(known) - len(keys)
        projects = {project.id: project.name for project in store.projects.list()}
    if as_json:
        print_json({"keys": [document(key) for key in keys], "hidden": hidden})
        return
    now = time.time()
    print_table(
        ["ID", "name", "kind", "project", "state", "created", "expires", "owner", "capacity"],
        [
            (
                key.id,
                key.name,
                key.kind,
                projects[key.project],
                key.state(now),
                shown(key.created),
                shown(key.expires),
                key.owner,
                _capacity(key),
            )
            for key in keys
        ],
        empty=f"There is no API key{'' if known else ' yet'}: "
        "`appliance keys create NAME` makes one.",
    )
    if hidden:
        words = "1 revoked key is" if hidden == 1 else f"{hidden} revoked keys are"
        err.print(f"note: {words} not shown; --all shows every key")


@app.command()
def show(key_id: KeyArgument, root: RootOption = None, as_json: JsonOption = False) -> None:
    """Show what a key may use, and its limits."""
    with open_store(node_layout(root)) as store:
        key = store.get(key_id)
        project = store.projects.get(key.project)
    if as_json:
        print_json(document(key))
        return
    print_fields(
        {
            "id": key.id,
            "name": key.name,
            "begins with": key.prefix,
            "kind": key.kind,
            "project": project.name,
            "owner": key.owner or "-",
            "tags": ", ".join(key.tags) or "-",
            "models": "all" if key.models is None else ", ".join(key.models) or "none",
            "apis": "all" if key.apis is None else ", ".join(key.apis) or "none",
            "priority": "on request" if key.priority else "-",
            "capacity": _capacity(key),
            "state": key.state(time.time()),
            "created": shown(key.created),
            "expires": shown(key.expires),
            "replaced by": key.successor or "-",
        }
    )
    limits.print_limits(key.limits)


@app.command()
def rotate(
    key_id: KeyArgument,
    overlap: Annotated[
        str, typer.Option("--overlap", help="How long the old key still works, for example 24h.")
    ] = "24h",
    expires: Annotated[
        str | None,
        typer.Option("--expires", help="Of the new key; it lives as long as the old, if absent."),
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace a key by a new one that may do the same; the old one works for a while."""
    from appliance.access import new_key
    from appliance.access.store import refuse_rotation
    from appliance.audit import admin_event

    config = node_config(root)
    seconds = span(overlap)
    with open_store(config.layout) as store:
        old = store.get(key_id)
        refuse_rotation(old, time.time())
        key = new_key(
            old.name,
            expires=_expiry(expires, None) or _as_long(old),
            kind=old.kind,
            project=old.project,
            owner=old.owner,
            tags=old.tags,
            models=old.models,
            apis=old.apis,
            priority=old.priority,
            lineage=old.lineage,
        )
        admin_event(config.layout, config.audit, "keys.rotate", target=old.id, version=key.info.id)
        replaced = store.rotate(old.id, key, overlap=seconds)
        _show_new(key, store.get(key.info.id), as_json=as_json, replaced=replaced)


@app.command()
def revoke(key_id: KeyArgument, root: RootOption = None, as_json: JsonOption = False) -> None:
    """Revoke an API key, for good and before the command returns; cut its running streams."""
    from appliance.audit import admin_event

    config = node_config(root)
    with open_store(config.layout) as store:
        # First the key, then the record: a log that cannot be written keeps no door open.
        try:
            key = store.revoke(key_id)
        except ConflictError as error:
            # Perhaps by a command that was killed before it could record it.
            _record_revoked_before(config, key_id, error)
            raise
    try:
        admin_event(config.layout, config.audit, "keys.revoke", target=key.id)
    except ApplianceError as error:
        error.message = f"the key is revoked, but not recorded: {error.message}"
        raise
    if as_json:
        print_json(document(key))
    else:
        out.print(f"{key.id} ({key.name}) is revoked", markup=False)


def _record_revoked_before(config: Config, key_id: str, error: ConflictError) -> None:
    from appliance.audit import admin_event

    admin_event(
        config.layout,
        config.audit,
        "keys.revoke",
        target=key_id,
        outcome="error",
        reason=error.message,
    )


@app.command("limit")
def set_limits(
    key_id: KeyArgument,
    requests_per_minute: limits.RequestsPerMinute = None,
    tokens_per_minute: limits.TokensPerMinute = None,
    parallel_requests: limits.ParallelRequests = None,
    tokens_per_day: limits.TokensPerDay = None,
    tokens_per_month: limits.TokensPerMonth = None,
    money_per_day: limits.MoneyPerDay = None,
    money_per_month: limits.MoneyPerMonth = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set or lift limits of a key, from its next request on; without options, show them."""
    from appliance.audit import admin_event

    wanted = limits.changes(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        parallel_requests=parallel_requests,
        tokens_per_day=tokens_per_day,
        tokens_per_month=tokens_per_month,
        money_per_day=money_per_day,
        money_per_month=money_per_month,
    )
    config = node_config(root)
    with open_store(config.layout) as store:
        key = store.get(key_id)
        key.limits.changed(wanted)
        if wanted:
            detail = limits.recorded(wanted)
            admin_event(config.layout, config.audit, "keys.limit", target=key.id, reason=detail)
            key = store.limit(key_id, wanted)
    if as_json:
        print_json(limits.document(key.limits))
    else:
        limits.print_limits(key.limits)


@app.command()
def reserve(
    key_id: KeyArgument,
    share: reserves.ShareOption = None,
    model: reserves.ModelOption = "",
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reserve a share of the capacity for a key, from its next request on; else show it."""
    from appliance.audit import admin_event

    config = node_config(root)
    with open_store(config.layout) as store:
        key = store.get(key_id)
        if share is not None:
            percent = reserves.percent(share)
            store.check_reserve(key.id, model, percent)
            detail = reserves.recorded(percent, model)
            admin_event(config.layout, config.audit, "keys.reserve", target=key.id, reason=detail)
            key = store.reserve(key.id, model, percent)
    if as_json:
        print_json(reserves.document(key.reserves))
    else:
        reserves.print_reserves(key.reserves)


def open_store(layout: Layout) -> KeyStore:
    """The node's keys. Raises NotFoundError if there is no node."""
    from appliance.access import KeyStore

    if not layout.access.is_dir():
        raise NotFoundError(f"there are no keys in {layout.access}", hint="install the node first")
    return KeyStore(layout.keys_db)


def document(key: KeyInfo) -> dict[str, object]:
    """A key for JSON."""
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "kind": key.kind,
        "project": key.project,
        "owner": key.owner,
        "tags": list(key.tags),
        "models": None if key.models is None else list(key.models),
        "apis": None if key.apis is None else list(key.apis),
        "priority": key.priority,
        "state": key.state(time.time()),
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "lineage": key.lineage,
        "successor": key.successor or None,
        "limits": limits.document(key.limits),
        "reserves": reserves.document(key.reserves),
    }


def _capacity(key: KeyInfo) -> str:
    """What is reserved for the key; where that is nothing, what its project has."""
    if key.kind == "admin":
        return "-"
    if key.reserves or not key.project_reserves:
        return reserves.summary(key.reserves)
    return f"project's {reserves.summary(key.project_reserves)}"


def _expiry(expires: str | None, days: int | None) -> int | None:
    if expires is not None and days is not None:
        raise UsageError("both --expires and --days were given", hint="give one of them")
    if days is not None:
        return int(time.time()) + days * _DAY_SECONDS
    return None if expires is None else moment(expires)


def _as_long(old: KeyInfo) -> int | None:
    """When a successor that lives as long as `old` was meant to expires."""
    return None if old.expires is None else int(time.time()) + old.expires - old.created


def _show_new(
    key: NewKey, stored: KeyInfo, *, as_json: bool, replaced: KeyInfo | None = None
) -> None:
    if as_json:
        shown_key = {**document(stored), "secret": key.secret}
        if replaced is not None:
            shown_key["replaces"] = document(replaced)
        print_json(shown_key)
        return
    fields = {"id": stored.id, "name": stored.name, "expires": shown(stored.expires)}
    if replaced is not None:
        fields["replaces"] = f"{replaced.id}, which expires {shown(replaced.expires)}"
    print_fields({**fields, "key": key.secret})
    err.print("The key is shown this once; only its hash is kept.")
