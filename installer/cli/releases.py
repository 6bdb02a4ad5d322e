"""`appliance releases …`: the releases that are on a node."""

from __future__ import annotations

import typer

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

app = typer.Typer(
    name="releases",
    help="See which releases are kept; go back to the former.",
    no_args_is_help=True,
)


@app.callback()
def group() -> None:
    """See which releases are kept; go back to the former."""


@app.command("list")
def list_releases(root: RootOption = None, as_json: JsonOption = False) -> None:
    """List the releases on this node's disk: the current one, and the former that is kept."""
    from installer.rollback import releases_of

    rows = releases_of(node_layout(root))
    if as_json:
        print_json({"releases": rows})
        return
    print_table(
        ["VERSION", "ID", "STATE", "COMPLETE", "FOR"],
        [
            (r["version"], r["id"], r["state"], "yes" if r["complete"] else "no",
             "processor and GPU" if r["gpu"] else "processor")
            for r in rows
        ],
        empty="There is no release: `appliance install MEDIA` brings one.",
    )  # fmt: skip
    for row in rows:
        if row["withdrawn"] is not None:
            text = f"\n{row['version']} ({row['id']}) was withdrawn by the packager: "
            out.print(f"{text}{row['withdrawn']}.", markup=False)


@app.command()
def rollback(
    even_withdrawn: EvenWithdrawnOption = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go back to the release that served before the last update, or forward again.

    It must prove itself; if it does not, the present one comes back.
    """
    from dataclasses import asdict

    from installer.node import node_at
    from installer.progress import NoProgress, TerminalProgress
    from installer.rollback import roll_back

    config = node_config(root)
    progress = NoProgress() if as_json else TerminalProgress(err)
    done = roll_back(config, node_at(config.layout), progress, even_withdrawn=even_withdrawn)
    if as_json:
        print_json(asdict(done))
        return
    proof = done.proof
    models = ", ".join(f"{name} {version}" for name, version in done.models.items())
    fields = {
        "release": f"{done.release} ({done.release_id})",
        "kept": f"{done.previous} ({done.previous_id}), which served before",
        "models": models or "none",
        "proof": f"{proof['model']}, {proof['tokens']} tokens in {proof['seconds']:.1f} s",
    }
    print_fields(fields)
    if done.generation != done.former_generation:
        err.print("note: the models are those that it served before")
