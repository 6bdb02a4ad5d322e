"""`appliance tls …`: the endpoint's certificate, and whose certificates callers may show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from installer.cli.output import (
    JsonOption,
    RootOption,
    err,
    node_config,
    out,
    print_fields,
    print_json,
)

if TYPE_CHECKING:
    from installer.tls import Shown

DaysOption = Annotated[
    int, typer.Option("--days", min=1, max=3650, help="Days that the certificate is valid.")
]
_DAYS = 825

app = typer.Typer(name="tls", help="Manage the endpoint's certificate.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Manage the endpoint's certificate."""


@app.command()
def create(
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Host name of this node; may be repeated."),
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option("--address", help="Address of this node; may be repeated."),
    ] = None,
    days: DaysOption = _DAYS,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Make another authority; applications have to be told."),
    ] = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a certificate authority for this node, and a certificate.

    Without names and addresses they are the machine's own. The authority can vouch for these alone.
    """
    from installer.tls import create as make

    config = node_config(root)
    found = make(config, name or (), address or (), days=days, replace=replace)
    _show(found, as_json=as_json)
    err.print(f"Give {found.ca_file} to the applications: it is what they trust.", markup=False)


@app.command()
def show(root: RootOption = None, as_json: JsonOption = False) -> None:
    """Show the certificate in force, and what applications have to trust."""
    from installer.tls import shown

    _show(shown(node_config(root)), as_json=as_json)


@app.command()
def renew(days: DaysOption = _DAYS, root: RootOption = None, as_json: JsonOption = False) -> None:
    """Replace the certificate by one of the same authority; running streams go on."""
    from installer.tls import renew as make

    _show(make(node_config(root), days=days), as_json=as_json)


@app.command("import")
def bring(
    certificate: Annotated[
        Path,
        typer.Argument(metavar="CERTIFICATE", help="PEM: the node's, then those between."),
    ],
    key: Annotated[Path, typer.Argument(metavar="KEY", help="Its private key, PEM, in clear.")],
    ca_file: Annotated[
        Path, typer.Option("--ca-file", help="PEM of the authority that applications trust.")
    ],
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Name or address it must be good for; may be repeated."),
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Use a certificate of your own authority; it is tried before it is taken."""
    from installer.tls import bring as take

    found, remarks = take(node_config(root), certificate, key, ca_file, names=name or ())
    _show(found, as_json=as_json)
    for remark in remarks:
        err.print(f"note: {remark}", markup=False)


@app.command()
def trust(
    ca_file: Annotated[
        Path, typer.Argument(metavar="CA_FILE", help="PEM of the authorities of callers.")
    ],
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Name the authorities of callers' certificates, where api.client_certificates is true."""
    from installer.tls import trust as take

    config = node_config(root)
    authorities = take(config, ca_file)
    if as_json:
        print_json({"client_authorities": [one.subject for one in authorities]})
        return
    print_fields({"authorities": "; ".join(one.subject for one in authorities)})
    if not config.api.client_certificates:
        err.print("note: api.client_certificates is false: nobody has to show one yet")


@app.command()
def apply(root: RootOption = None, as_json: JsonOption = False) -> None:
    """Make the settings of the endpoint take effect: its unit, its certificate, a restart."""
    import sys

    from installer.endpoint_settings import apply_settings
    from installer.node import node_at
    from installer.progress import progress_for

    config = node_config(root)
    progress = progress_for(err, sys.stdout, as_json=as_json)
    apply_settings(config, node_at(config.layout), progress)
    if as_json:
        print_json({"base_url": config.base_url})
    else:
        out.print(f"endpoint  {config.base_url}", markup=False)


def _show(found: Shown, *, as_json: bool) -> None:
    from dataclasses import asdict

    from appliance.tls.certificate import day

    if as_json:
        print_json(asdict(found))
        return
    certificate = found.certificate
    print_fields(
        {
            "names": ", ".join(certificate.names) or "-",
            "addresses": ", ".join(certificate.addresses) or "-",
            "issued by": certificate.issuer,
            "expires": f"{day(certificate.not_after)} ({found.days_left} days)",
            "key": certificate.key,
            "sha256": certificate.sha256,
            "applications trust": found.ca_file,
            "callers": "; ".join(found.client_authorities) or "need no certificate",
        }
    )
    if found.remark:
        err.print(f"note: {found.remark}", markup=False)
