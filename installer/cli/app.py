"""The root command: registers the nouns, turns typed errors into a hint and an exit status."""

from __future__ import annotations

import sys

import typer

import appliance
from appliance.errors import ApplianceError
from installer.cli import (
    ask,
    audit,
    audit_content,
    audit_evidence,
    bench,
    bundle,
    install,
    keys,
    media,
    models,
    prices,
    projects,
    releases,
    serve,
    status,
    tls,
    trust,
    trust_passphrase,
    usage,
)
from installer.cli.output import out, print_error
from installer.packager_disk import about_a_file
from installer.unpack import end_on_signals

app = typer.Typer(
    name="appliance",
    help="Install and run open-weight models on a node without a network.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

for command in (install, serve, status, ask, bench):
    command.register(app)
audit_evidence.register(audit.app)
audit_content.register(audit.app)
trust_passphrase.register(trust.app)
for noun in (models, releases, keys, projects, prices, usage, audit, tls, trust, bundle, media):
    app.add_typer(noun.app)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(appliance.__version__)
        raise typer.Exit


@app.callback()
def root_command(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Install and run open-weight models on a node without a network."""


def main() -> None:
    """Entry point of the `appliance` command."""
    run(app)


def run(command: typer.Typer) -> None:
    """Run `command` on this process's arguments; exits with the error tree's status."""
    end_on_signals()
    try:
        command()
    except ApplianceError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_status)
    except OSError as error:
        refusal = about_a_file(error)
        if refusal is None:
            raise
        print_error(refusal, as_json="--json" in sys.argv)
        sys.exit(refusal.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
