"""Measures the audit writer: full speed with many clients, then 200 requests a second.

Each request is two records (REQ, RES), each awaited until it is durable. Seconds of requests and
seconds of the bare disk take turns: as many appends of a record's size, each with its fdatasync,
by a thread that does nothing else. The log is made in a temporary directory below DIR, which
should be on the disk that is asked about.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

from appliance.audit import AuditLog, AuditWriter, create_signer
from appliance.audit.event import Event, Request, Response, Tokens
from appliance.audit.fsck import verify
from appliance.config import AuditSettings

CLIENTS, REQUESTS_EACH = 256, 60
RATE, SECONDS = 200, 10
RECORD_BYTES = 400


def exchange(name: str) -> tuple[Event, Event]:
    route, model = "/v1/chat/completions", "guide"
    request = Request(request_id=name, key_id="key_0123456789", route=route, model=model)
    response = Response(
        request_id=name,
        key_id="key_0123456789",
        route=route,
        model=model,
        outcome="ok",
        tokens=Tokens(prompt=120, generated=80, delivered=80),
    )
    return request, response


async def serve(writer: AuditWriter, name: str, waits: list[float]) -> None:
    for event in exchange(name):
        start = time.perf_counter()
        await writer.record(event)
        waits.append(time.perf_counter() - start)


async def full_speed(writer: AuditWriter) -> list[float]:
    waits: list[float] = []

    async def client(number: int) -> None:
        for i in range(REQUESTS_EACH):
            await serve(writer, f"full-{number}-{i}", waits)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return waits


async def steady(writer: AuditWriter, second: int) -> list[float]:
    """A second of requests."""
    waits: list[float] = []
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for i in range(RATE):
            await asyncio.sleep(max(0.0, start + i / RATE - time.perf_counter()))
            group.create_task(serve(writer, f"steady-{second}-{i}", waits))
    return waits


def bare(directory: Path) -> list[float]:
    """A second of the same appends without us."""
    waits: list[float] = []
    fd = os.open(directory / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    start = time.perf_counter()
    for i in range(2 * RATE):
        time.sleep(max(0.0, start + i / (2 * RATE) - time.perf_counter()))
        begin = time.perf_counter()
        os.write(fd, bytes(RECORD_BYTES))
        os.fdatasync(fd)
        waits.append(time.perf_counter() - begin)
    os.close(fd)
    return waits


def sync_milliseconds(directory: Path) -> float:
    """Median fdatasync of 4 KiB appended: what the disk itself takes."""
    fd = os.open(directory / "probe", os.O_WRONLY | os.O_CREAT)
    times = []
    for _ in range(100):
        os.write(fd, bytes(4096))
        start = time.perf_counter()
        os.fdatasync(fd)
        times.append(time.perf_counter() - start)
    os.close(fd)
    return sorted(times)[50] * 1000


def report(name: str, waits: list[float], seconds: float) -> None:
    waits.sort()
    p50, p99, worst = (waits[int(len(waits) * q)] * 1000 for q in (0.5, 0.99, 0.9999))
    print(
        f"{name}: {len(waits) / seconds:,.0f} records/s, acknowledged p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms, worst {worst:.1f} ms"
    )


async def measure(log: AuditLog, settings: AuditSettings) -> None:
    async with AuditWriter(log, settings) as writer:
        start = time.perf_counter()
        waits = await full_speed(writer)
        report("full speed", waits, time.perf_counter() - start)
        ours: list[float] = []
        disk: list[float] = []
        for second in range(SECONDS):
            ours += await steady(writer, second)
            disk += await asyncio.to_thread(bare, log.directory.parent)
        report(f"{RATE} requests/s", ours, SECONDS)
        report("the disk alone, as often", disk, SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dir", type=Path, help="where to write; the temporary directory if absent"
    )
    parser.add_argument(
        "--batch-milliseconds", type=float, default=AuditSettings().batch_milliseconds
    )
    options = parser.parse_args()
    settings = AuditSettings(batch_milliseconds=options.batch_milliseconds)
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        base = Path(name)
        print(f"fdatasync of this disk: {sync_milliseconds(base):.2f} ms")
        vkey = create_signer(base / "key", "bench.example/audit")
        with AuditLog.open(base / "audit", base / "key", settings) as log:
            asyncio.run(measure(log, settings))
        start = time.perf_counter()
        result = verify(base / "audit", vkey)
        assert result.ok, result.findings
        seconds = time.perf_counter() - start
        print(f"verified: {result.size:,} records, {result.size / seconds:,.0f} records/s")


if __name__ == "__main__":
    main()
