"""Measures the client of `appliance bench` against a server that computes nothing.

The server is a process of its own and sends each piece in a write of its own, as fast as it is
read. What the client can take is pieces over the processor time that it spent on them, so the
server's share of the machine does not matter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.connection
import time

import uvloop

from installer.bench import Plan, run
from installer.bench.server import Server
from installer.bench.watcher import Unwatched
from installer.bench.workload import Level, Workload

PIECES = 256
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(document: object) -> bytes:
    frame = b"data: " + json.dumps(document).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(frame), frame)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(x[15:]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length")
    )
    body = await reader.readexactly(length)
    if head.startswith(b"GET"):
        models = json.dumps({"data": [{"id": "nothing"}]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(models) + models)
    elif b"/tokenize" in head:
        count = len(json.loads(body)["messages"][0]["content"].split())
        said = json.dumps({"count": count}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said) + said)
    else:
        await stream(writer, json.loads(body))
    await writer.drain()
    writer.close()


async def stream(writer: asyncio.StreamWriter, request: dict[str, object]) -> None:
    writer.write(HEAD)
    common = {
        "id": "chatcmpl-0123456789",
        "object": "chat.completion.chunk",
        "created": 1_800_000_000,
    }
    choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": None}
    piece = chunk(common | {"model": "nothing", "choices": [choice]})
    tokens = int(str(request["max_tokens"]))
    for _ in range(tokens):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    usage = {"prompt_tokens": 64, "completion_tokens": tokens}
    writer.write(chunk({"choices": [], "usage": usage}) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def serve(ready: multiprocessing.connection.Connection) -> None:
    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--requests", type=int, default=512)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs,), daemon=True
    )
    process.start()
    workload = Workload(
        levels=(Level(concurrency=options.streams),),
        input_tokens=64,
        output_tokens=PIECES,
        requests=options.requests,
    )
    server = Server(f"http://127.0.0.1:{ours.recv()}/v1", None, time.perf_counter, 60.0)
    plan = Plan(server, workload, None, own_node=False, command="scripts/bench-client")
    begin = time.process_time()
    report = uvloop.run(run(plan, Unwatched(), asyncio.Event()))
    spent = time.process_time() - begin
    process.terminate()
    (level,) = report.levels
    assert level.failed == 0, level.errors
    assert level.output_tokens_per_second is not None
    pieces = level.requests * PIECES
    print(
        f"{options.streams} streams: {level.output_tokens_per_second:,.0f} pieces/s came, "
        f"{1e6 * spent / pieces:.1f} us of the client's processor each: "
        f"it can take {pieces / spent:,.0f} pieces/s"
    )


if __name__ == "__main__":
    main()
