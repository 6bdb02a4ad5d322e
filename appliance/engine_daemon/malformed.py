"""Requests whose bytes are no message: INVALID_ARGUMENT, and nothing in the log.

gRPC would answer UNKNOWN with the parser's words and log a traceback for each, which whoever has
the socket could repeat without end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

_MALFORMED = object()


class Registrar:
    """A server to the generated `add_..._to_server`: what they add is asked only with messages.

    Not an interceptor, which makes each handler anew in a task of its own for every call.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(
        self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]
    ) -> None:
        self._server.add_generic_rpc_handlers(tuple(map(_Lenient, handlers)))

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Nothing: the same are added above. grpc.aio awaits the next call of each registered
        method apart, and goes through all of them for each call that comes."""


class _Lenient(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not at run time
    """The unary-unary and unary-stream methods of `asked`, made ready once each."""

    def __init__(self, asked: grpc.GenericRpcHandler[Any, Any]) -> None:
        self._asked = asked
        self._ready: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """None for a method that there is not."""
        method = handler_call_details.method
        ready = self._ready.get(method)
        if ready is None:
            handler = self._asked.service(handler_call_details)
            if handler is None or handler.request_streaming:
                return handler
            ready = self._ready[method] = _ready(handler)
        return ready


def _ready(handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    method: Any = handler.unary_unary
    make = grpc.unary_unary_rpc_method_handler
    if handler.response_streaming:
        method, make = handler.unary_stream, grpc.unary_stream_rpc_method_handler
    # A method of several events may yield them, or write them to the context.
    answer: Any = (_stream if inspect.isasyncgenfunction(method) else _unary)(method)
    return make(
        answer,
        request_deserializer=_lenient(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )


def _lenient(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def parsed(data: bytes) -> Any:  # noqa: ANN401  # a message, or the mark that it is none
        try:
            return data if parse is None else parse(data)
        except DecodeError:
            return _MALFORMED

    return parsed


def _unary(method: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(request: Any, context: Any) -> Any:  # noqa: ANN401
        await _refuse(request, context)
        return await method(request, context)

    return answer


def _stream(method: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(request: Any, context: Any) -> Any:  # noqa: ANN401
        await _refuse(request, context)
        async for event in method(request, context):
            yield event

    return answer


async def _refuse(request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if request is _MALFORMED:
        await context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, "the request's bytes are not a message"
        )
