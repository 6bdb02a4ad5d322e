"""`appliance keys …`: who may call the API."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.errors import ApplianceError, NotFoundError
from installer.cli.output import (
    JsonOption,
    RootOption,
    err,
    node_config,
    out,
    print_fields,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from appliance.access import KeyInfo, KeyStore
    from appliance.config import Layout

app = typer.Typer(name="keys", help="Hand out and revoke API keys.", no_args_is_help=True)

_DAY_SECONDS = 86_400


@app.callback()
def group() -> None:
    """Hand out and revoke API keys."""


@app.command()
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The program or team that will use the key.")
    ],
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
    expires = None if days is None else int(time.time()) + days * _DAY_SECONDS
    key = new_key(name, expires=expires)
    with _open_store(config.layout) as store:
        # First the record, then the key: no key exists without one.
        admin_event(config.layout, config.audit, "keys.create", target=key.info.id)
        store.add(key)
    if as_json:
        print_json({**_document(key.info), "secret": key.secret})
        return
    print_fields({"id": key.info.id, "name": name, "expires": _when(expires), "key": key.secret})
    err.print("The key is shown this once; only its hash is kept.")


@app.command("list")
def list_keys(root: RootOption = None, as_json: JsonOption = False) -> None:
    """List every API key there ever was, without the secrets."""
    with _open_store(node_config(root).layout) as store:
        keys = store.list()
    if as_json:
        print_json({"keys": [_document(key) for key in keys]})
        return
    now = time.time()
    print_table(
        ["ID", "name", "state", "created", "expires"],
        [
            (key.id, key.name, key.state(now), _when(key.created), _when(key.expires))
            for key in keys
        ],
        empty="There is no API key yet: `appliance keys create NAME` makes one.",
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="ID from `appliance keys list`.")],
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke an API key, for good and before the command returns."""
    from appliance.audit import admin_event

    config = node_config(root)
    with _open_store(config.layout) as store:
        # First the key, then the record: a log that cannot be written keeps no door open.
        key = store.revoke(key_id)
    try:
        admin_event(config.layout, config.audit, "keys.revoke", target=key.id)
    except ApplianceError as error:
        error.message = f"the key is revoked, but not recorded: {error.message}"
        raise
    if as_json:
        print_json(_document(key))
    else:
        out.print(f"{key.id} ({key.name}) is revoked", markup=False)


def _open_store(layout: Layout) -> KeyStore:
    from appliance.access import KeyStore

    if not layout.access.is_dir():
        raise NotFoundError(f"there are no keys in {layout.access}", hint="install the node first")
    return KeyStore(layout.keys_db)


def _document(key: KeyInfo) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state(time.time()),
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
    }


def _when(seconds: int | None) -> str:
    return "never" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}Z"
