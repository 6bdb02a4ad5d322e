"""`appliance bench`."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import signal
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.config import Config, api_key
from appliance.errors import NotFoundError, StorageError, UsageError
from installer.cli.output import JsonOption, RootOption, err, node_config, out, print_table

if TYPE_CHECKING:
    from installer.bench import Plan, Report
    from installer.bench.comparison import Comparison
    from installer.bench.watcher import TerminalWatcher
    from installer.bench.workload import Workload

KEY_NAME = "appliance bench"
KEY_SECONDS = 86_400
"""A run may take hours; its key is revoked at the end."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as of every command."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("bench")(bench)


def bench(
    concurrency: Annotated[
        str | None,
        typer.Option(help="Streams at once, several levels with commas; 1,4,16 if absent."),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="Instead: requests a second, arriving at random, answered or not."),
    ] = None,
    input_tokens: Annotated[
        int | None,
        typer.Option("--input-tokens", min=1, help="Tokens of each prompt; 256 if absent."),
    ] = None,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", min=1, help="Tokens of each answer.")
    ] = 128,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File with real prompts, one a line: text, or JSON with `messages`."),
    ] = None,
    shared_prefix: Annotated[
        int,
        typer.Option("--shared-prefix", min=0, help="Leading tokens that all prompts share."),
    ] = 0,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="Requests per level; twice the concurrency, at least 8."),
    ] = None,
    warmup: Annotated[
        int, typer.Option(min=0, help="Requests before each level that do not count.")
    ] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of prompts and arrivals; a new one if absent.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to ask; the only chat model if absent.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", help="Another OpenAI-compatible API, with APPLIANCE_API_KEY."),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option("--ca-file", help="PEM of whom to trust, if --base-url begins with https."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds of silence after which a request has failed.")
    ] = 300.0,
    compare: Annotated[
        Path | None, typer.Option(help="JSON of an earlier run; shows now / before.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write one page with charts to this file.")
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure speed under load: first token, gaps between tokens, throughput.

    Asks this node, by a key that is made for the run and revoked after it, or the API that
    --base-url names. Tokens are what the server's usage counts. Ctrl-C ends early with what was
    measured. On a node the report is kept.
    """
    from installer.bench.workload import Workload, check_workload, parse_levels

    if base_url is not None and root is not None:
        raise UsageError(
            "--base-url and --root exclude each other: one names another server, one a node",
            hint="leave one of them out",
        )
    if ca_file is not None and not (base_url or "").startswith("https:"):
        raise UsageError(
            "--ca-file is for a --base-url that begins with https://",
            hint="leave it out: this node's own certificate is known",
        )
    if html is not None and not html.absolute().parent.is_dir():
        raise NotFoundError(f"{html.parent} is not a directory", hint="make it, or change --html")
    workload = Workload(
        levels=parse_levels(concurrency, rate),
        input_tokens=(input_tokens or 0) if prompts else (input_tokens or 256),
        output_tokens=output_tokens,
        shared_prefix=shared_prefix,
        prompts=str(prompts) if prompts else "",
        requests=requests or 0,
        warmup=warmup,
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
    )
    check_workload(workload)
    before = _read(compare)
    with ExitStack() as stack:
        config = node_config(root) if base_url is None else None
        plan = stack.enter_context(_plan(config, base_url, ca_file, workload, model, timeout))
        report = _run(plan)
    _show(report, before, html, config, as_json=as_json)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _plan(
    config: Config | None,
    base_url: str | None,
    ca_file: Path | None,
    workload: Workload,
    model: str | None,
    timeout: float,
) -> Iterator[Plan]:
    from installer.bench import Plan
    from installer.bench.http import address_of
    from installer.bench.server import Server
    from installer.local_endpoint import local_tls

    url = config.base_url if config is not None else (base_url or "").rstrip("/")
    address_of(url)
    tls = local_tls(config) if config is not None else _trusting(ca_file)
    with _key(config) as secret:
        yield Plan(
            server=Server(url, secret, time.perf_counter, timeout, tls),
            workload=workload,
            model=model,
            own_node=config is not None,
            command=shlex.join(["appliance", *sys.argv[1:]]),
        )


def _trusting(ca_file: Path | None) -> ssl.SSLContext | None:
    """For another server; None where the system's authorities decide."""
    if ca_file is None:
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"{ca_file} holds no certificate that can be read: {error}", hint="change --ca-file"
        ) from error


@contextmanager
def _key(config: Config | None) -> Iterator[str | None]:
    from installer.passing_key import passing_key

    secret = api_key()
    if secret is not None or config is None:
        yield secret
    else:
        with passing_key(config.layout, KEY_NAME, seconds=KEY_SECONDS) as made:
            yield made


def _read(path: Path | None) -> Report | None:
    from installer.bench.report import read_report

    return read_report(path) if path is not None else None


def _run(plan: Plan) -> Report:
    import uvloop

    from installer.bench.watcher import TerminalWatcher

    with (
        TerminalWatcher(err) as shown,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        try:
            return runner.run(_until_stopped(plan, shown))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


async def _until_stopped(plan: Plan, shown: TerminalWatcher) -> Report:
    """The run. The first Ctrl-C ends it early; before the first level there is nothing to show."""
    from installer.bench import run

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        if stop.is_set() or not shown.measuring:
            task.cancel()
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    return await run(plan, shown, stop)


def _show(
    report: Report,
    before: Report | None,
    html: Path | None,
    config: Config | None,
    *,
    as_json: bool,
) -> None:
    from installer.bench.comparison import compare
    from installer.bench.history import keep

    comparison = compare(report, before) if before is not None else None
    if as_json:
        _print_json(report, comparison)
    else:
        _print_report(report, comparison)
    if html is not None:
        _write_page(html, report)
    kept = keep(config.layout, report) if config is not None else None
    if kept is not None:
        err.print(f"kept as {kept}", markup=False)


def _print_json(report: Report, comparison: Comparison | None) -> None:
    import msgspec

    from installer.cli.output import print_json

    document = msgspec.to_builtins(report) | {"notes": report.notes}
    if comparison is not None:
        document["comparison"] = msgspec.to_builtins(comparison)
    print_json(document)


def _print_report(report: Report, comparison: Comparison | None) -> None:
    from installer.bench.picture import pictures
    from installer.bench.table import (
        RATIOS,
        SPEED,
        TIMES,
        ratio_rows,
        remarks,
        speed_rows,
        time_rows,
    )

    target, work = report.target, report.workload
    name = f"{target.model} {target.version}".strip()
    shape = f"prompts of {work.prompts}" if work.prompts else f"{work.input_tokens} tokens in"
    out.print(f"{name} at {target.base_url}: {shape}, {work.output_tokens} out", markup=False)
    out.print()
    print_table(SPEED, speed_rows(report.levels), empty="nothing was measured")
    out.print()
    print_table(TIMES, time_rows(report.levels), empty="nothing was measured")
    _print_lines(pictures(report.levels))
    _print_lines(remarks(report))
    if comparison is not None:
        out.print(f"\nnow / before ({comparison.before})\n", markup=False)
        print_table(RATIOS, ratio_rows(comparison), empty="no level is in both reports")
        if comparison.differences:
            out.print(f"note: not the same: {', '.join(comparison.differences)}", markup=False)


def _print_lines(lines: list[str]) -> None:
    if lines:
        out.print()
    for line in lines:
        out.print(line, markup=False)


def _write_page(path: Path, report: Report) -> None:
    from installer.bench.page import page_of

    try:
        path.write_text(page_of(report), "utf-8")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}", hint="change --html"
        ) from error
    err.print(f"wrote {path}", markup=False)
