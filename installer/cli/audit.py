"""`appliance audit …`: check the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.errors import AuditError, NotFoundError
from installer.cli.output import (
    JsonOption,
    RootOption,
    node_config,
    out,
    print_fields,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from appliance.audit.fsck import Report

app = typer.Typer(name="audit", help="Check the audit log.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Check the audit log."""


@app.command()
def verify(
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Directory of the log, or of a copy; the node's by default."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Verifier key, as the installation printed it."),
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option("--since", help="A checkpoint file kept earlier: the log must continue it."),
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify every record, tile and signature of an audit log."""
    from appliance.audit.fsck import verify as verify_log

    log = directory if directory is not None else node_config(root).layout.audit
    report = verify_log(log, key, since=_kept_checkpoint(since))
    if as_json:
        print_json(report.document())
    else:
        _print_report(report, since is not None)
    if not report.ok:
        count = report.finding_count
        raise AuditError(
            f"the audit log does not verify: {count} finding{'s' if count > 1 else ''}",
            path=report.findings[0].path,
            hint="keep the log as it is, copy it, and call the auditor",
        )


def _kept_checkpoint(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path is not None else None
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}") from error


def _print_report(report: Report, continued: bool) -> None:
    print_fields(
        {
            "log": report.origin or "unknown",
            "records": report.size,
            "root": report.root or "unknown",
            "from": report.first_time or "-",
            "to": report.last_time or "-",
            "by type": ", ".join(f"{k} {n}" for k, n in sorted(report.records.items())) or "-",
            "in flight": report.open_requests,
            "not yet signed": report.unpublished,
            "key": report.key or "unknown",
        }
    )
    if report.findings:
        out.print()
        print_table(
            ["finding", "where", "record", "what"],
            [(f.code, f.path, "" if f.seq is None else f.seq, f.message) for f in report.findings],
            empty="",
        )
        return
    out.print()
    out.print("verified: every record, tile and signature", style="bold green")
    if continued:
        out.print("verified: a continuation of the kept checkpoint", style="bold green")
    if not report.key_pinned:
        out.print("The key came from the log itself. Pass --key with the one printed at install.")
