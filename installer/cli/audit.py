"""`appliance audit …`: check the audit log, read it, prune it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.errors import AuditError, NotFoundError, UsageError
from installer.cli.output import (
    JsonOption,
    RootOption,
    node_config,
    node_layout,
    out,
    print_fields,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from appliance.audit.event import AnyEvent
    from appliance.audit.fsck import Report

app = typer.Typer(name="audit", help="Check the audit log.", no_args_is_help=True)

DirectoryOption = Annotated[
    Path | None,
    typer.Option("--dir", help="Directory of the log, or of a copy; the node's by default."),
]
_FOLLOW_SECONDS = 0.5


@app.callback()
def group() -> None:
    """Check the audit log."""


@app.command()
def verify(
    directory: DirectoryOption = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Verifier key, as the installation printed it."),
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option("--since", help="A checkpoint file kept earlier: the log must continue it."),
    ] = None,
    cosigner: Annotated[
        str | None,
        typer.Option("--cosigner", help="Verifier key of who cosigned heads of the log."),
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify every record, tile and signature of an audit log."""
    from appliance.audit.cosignature import CosignerVerifier
    from appliance.audit.fsck import verify as verify_log

    log = log_directory(directory, root)
    known = CosignerVerifier.parse(cosigner) if cosigner is not None else None
    report = verify_log(log, key, since=_kept_checkpoint(since), cosigner=known)
    show_report(report, as_json=as_json, continued=since is not None)


@app.command()
def tail(
    count: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many of the newest records.")
    ] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new ones until interrupted.")
    ] = False,
    directory: DirectoryOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the newest records, one a line; with --json as they are in the log."""
    log = log_directory(directory, root)
    following = _print_records(log, _start(log, count), as_json=as_json)
    while follow:
        time.sleep(_FOLLOW_SECONDS)
        following = _print_records(log, following, as_json=as_json)


@app.command()
def prune(
    days: Annotated[
        float | None,
        typer.Option("--older-than", min=0, help="Age in days; audit.retention_days by default."),
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete old records that are billed; their hashes and every proof stay."""
    from appliance.audit import AuditLog, acting_as_owner
    from appliance.audit.admin import login_name
    from appliance.metering import prune_settled

    config = node_config(root)
    days = days if days is not None else config.audit.retention_days or None
    if days is None:
        raise UsageError(
            "nothing says how old records may become",
            hint="pass --older-than DAYS or set audit.retention_days",
        )
    layout = config.layout
    with (
        acting_as_owner(layout.audit),
        AuditLog.open(layout.audit, layout.audit_key, config.audit) as log,
    ):
        count = prune_settled(log, layout, days, login_name())
    if as_json:
        print_json({"pruned": count})
    else:
        out.print(f"pruned: {count} records")


def log_directory(directory: Path | None, root: Path | None) -> Path:
    """The log that `--dir` names, else the node's. Raises NotFoundError: nothing of a log."""
    if directory is None:
        return node_layout(root).audit
    if not any((directory / name).exists() for name in ("checkpoint", "state.json", "tile")):
        raise NotFoundError(
            f"there is no audit log in {directory}",
            hint="name the directory that `appliance audit export` wrote, or a copy of the log's",
        )
    return directory


def show_report(report: Report, *, as_json: bool, continued: bool = False) -> None:
    """Print what a verification found. Raises AuditError if that is anything."""
    if as_json:
        print_json(report.document())
    else:
        _print_report(report, continued)
    if not report.ok:
        count = report.finding_count
        raise AuditError(
            f"the audit log does not verify: {count} finding{'s' if count > 1 else ''}",
            path=report.findings[0].path,
            hint="keep the log as it is, copy it; the auditor's guide says what the findings mean",
        )


def _start(log: Path, count: int) -> int:
    """Number of the first of the `count` newest records."""
    from appliance.audit.reader import first_record, next_record

    return max(first_record(log), next_record(log) - count)


def _print_records(log: Path, start: int, *, as_json: bool) -> int:
    """Print the records from `start` on; returns the number of the one that comes next."""
    from appliance.audit import read_events
    from appliance.audit.event import encode_leaf

    for number, record in read_events(log, start):
        line = encode_leaf(record).decode() if as_json else _line(number, record)
        out.print(line, markup=False)
        start = number + 1
    return start


def _line(number: int, record: AnyEvent) -> str:
    """One record for the eye: number, time, type, then what it says."""
    hidden = {"v", "seq", "boot_id", "epoch", "t_utc", "t_mono_ns", "tokens"}
    said = {n: getattr(record, n) for n in record.__struct_fields__ if n not in hidden}
    words = " ".join(f"{name}={value}" for name, value in said.items() if value)
    kind = str(record.__struct_config__.tag)
    return f"{number:>8} {record.t_utc} {kind:<9} {words}".rstrip()


def _kept_checkpoint(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path is not None else None
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}") from error


def _cosigned(report: Report) -> str:
    if not report.cosigned:
        return "-"
    at = datetime.fromtimestamp(report.cosigned_at, UTC)
    return f"the first {report.cosigned} records, {at:%Y-%m-%dT%H:%M:%SZ}"


def _clock(report: Report) -> str:
    if not report.clock_set:
        return "-"
    step = f"{'-' if report.clock_step < 0 else '+'}{timedelta(seconds=abs(report.clock_step))}"
    times = f"{report.clock_set} time{'s' if report.clock_set > 1 else ''}"
    return f"{times}, most {step} before record {report.clock_record}"


def _print_report(report: Report, continued: bool) -> None:
    print_fields(
        {
            "log": report.origin or "unknown",
            "records": report.size,
            "root": report.root or "unknown",
            "from": report.first_time or "-",
            "to": report.last_time or "-",
            "by type": ", ".join(f"{k} {n}" for k, n in sorted(report.records.items())) or "-",
            "pruned": report.pruned,
            "in flight": report.open_requests,
            "not yet signed": report.unpublished,
            "key": report.key or "unknown",
            "newest key": report.head_key or "unknown",
            "cosigned": _cosigned(report),
            "clock set": _clock(report),
        }
    )
    if report.findings:
        out.print()
        print_table(
            ["finding", "where", "record", "what"],
            [(f.code, f.path, f.records, f.message) for f in report.findings],
            empty="",
        )
        return
    out.print()
    out.print("verified: every record, tile and signature", style="bold green")
    if continued:
        out.print("verified: a continuation of the kept checkpoint", style="bold green")
    if not report.key_pinned:
        out.print("The key came from the log itself. Pass --key with the one printed at install.")
