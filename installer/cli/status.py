"""`appliance status`."""

import typer

from installer.cli.output import (
    JsonOption,
    RootOption,
    node_config,
    out,
    print_fields,
    print_json,
    print_table,
)

NOT_SERVING = 9
"""Exit status; that of an UnavailableError."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(status)


def status(root: RootOption = None, as_json: JsonOption = False) -> None:
    """Show services, models, health and disk; the exit status is 9 if the node is not serving."""
    import msgspec

    from installer.node import node_at
    from installer.status import status_of

    config = node_config(root)
    found = status_of(config, node_at(config.layout))
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        print_fields(
            {
                "state": "serving" if found.serving else "NOT serving",
                "endpoint": found.base_url,
                "release": found.release or "nothing is installed",
                **found.services,
                "engine": "answers" if found.health.engine else "does not answer",
                "audit log": "writable" if found.health.audit else "unknown or not writable",
                "audit key": found.audit_key or "readable by root only",
                "disk": f"{_gib(found.disk_free_bytes)} of {_gib(found.disk_total_bytes)} free",
                "generation": found.generation,
            }
        )
        out.print()
        print_table(
            ["MODEL", "VERSION", "KIND", "STATE", "PROVIDER", "BECAUSE", "MEMORY"],
            [
                (m.name, m.version, m.kind, m.error or m.state, m.provider, m.reason,
                 _gib(m.memory_bytes))
                for m in found.models
            ],
            empty="No model is active: `appliance models list` shows what there is.",
        )  # fmt: skip
    if not found.serving:
        raise typer.Exit(NOT_SERVING)


def _gib(count: int) -> str:
    return f"{count / 1024**3:.2f} GiB"
