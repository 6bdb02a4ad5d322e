"""A gRPC server of gRPC's own, whose methods take and give bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import grpc

MOST = 64 * 1024 * 1024


@dataclass
class Server:
    """What its methods did."""

    sent: int = 0
    """Bytes that `flood` has handed to gRPC."""
    begun: threading.Event = field(default_factory=threading.Event)
    """`hang` was called."""
    gone: threading.Event = field(default_factory=threading.Event)
    """A caller of `flood` or `hang` gave it up."""
    release: threading.Event = field(default_factory=threading.Event)
    go_away: Callable[[], object] = lambda: None
    """Take no more calls, and end those that run when they are released."""

    def echo(self, request: bytes, _: grpc.ServicerContext) -> bytes:
        return request

    def count(self, request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
        """The numbers below `request`."""
        for number in range(int(request)):
            yield b"%d" % number

    def flood(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Messages of 64 KiB, `request` of them."""
        if not context.add_callback(self.gone.set):
            self.gone.set()
        for _ in range(int(request)):
            self.sent += 65536
            yield bytes(65536)

    def hang(self, _: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        if not context.add_callback(self._leave):  # it was given up before it began
            self._leave()
        self.begun.set()
        yield b"first"
        self.release.wait(120)

    def _leave(self) -> None:
        self.gone.set()
        self.release.set()

    def refuse(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("appliance-code", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, request.decode())
        raise AssertionError

    def wrong(self, _: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"one"
        yield b"two"


@contextmanager
def serving(socket: Path) -> Iterator[Server]:
    """On the Unix socket `socket`, until the end, which comes at once as a crash would."""
    methods = Server()
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(getattr(methods, name))
        for name in ("echo", "refuse")
    } | {
        name: grpc.unary_stream_rpc_method_handler(getattr(methods, name))
        for name in ("count", "flood", "hang", "wrong")
    }
    options = [("grpc.max_receive_message_length", MOST), ("grpc.max_send_message_length", MOST)]
    server = grpc.server(ThreadPoolExecutor(16), options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", handlers),))
    server.add_insecure_port(f"unix:{quote(str(socket))}")
    server.start()
    methods.go_away = lambda: server.stop(120)
    try:
        yield methods
    finally:
        stopped = server.stop(None)
        methods.release.set()
        stopped.wait()
        socket.unlink(missing_ok=True)
