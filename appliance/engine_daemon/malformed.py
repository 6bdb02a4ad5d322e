"""Requests whose bytes are no message: INVALID_ARGUMENT, and nothing in the log.

gRPC would answer UNKNOWN with the parser's words and log a traceback for each, which whoever has
the socket could repeat without end.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

_MALFORMED = object()


class RefuseMalformed(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not at run time
    """Stands before every unary-unary and unary-stream method."""

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The method's handler, asked only with what is a message."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
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
