"""Hostile calls of the engine's protocol, past the endpoint: from a process that got its socket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from appliance.pb import engine_v1_pb2 as pb
from tests.hostile.oracle import faults_of_text
from tests.hostile.stack import SECONDS, Stack

Code = grpc.StatusCode
_BAD = (Code.INVALID_ARGUMENT,)
_GONE = (Code.NOT_FOUND,)


@dataclass(frozen=True, slots=True)
class Call:
    """One call: bytes are sent as they are, whatever the method expects."""

    name: str
    method: str
    request: bytes
    codes: Sequence[grpc.StatusCode] = _BAD


def faults_of(stack: Stack, call: Call) -> list[str]:
    """What is wrong with the engine's answer to it."""
    path = f"unix:{stack.config.layout.engine_socket}"
    with grpc.insecure_channel(path) as channel:
        name = f"/{call.method}" if "/" in call.method else _named(call)
        method = channel.unary_stream(name, None, None)
        try:
            count = sum(1 for _ in method(call.request, timeout=SECONDS))
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            found = faults_of_text(details.encode())
            if code not in call.codes:
                found.append(f"{code.name} instead of {call.codes}: {details[:200]}")
            return found
        return [] if Code.OK in call.codes else [f"it was answered, {count} messages"]


def _named(call: Call) -> str:
    return f"/appliance.engine.v1.Engine/{call.method}"


def _generate(name: str, *codes: grpc.StatusCode, **fields: object) -> Call:
    given = {"request_id": f"hostile {name}", "model": "chat", "text": "x"} | fields
    if any(form in fields for form in ("chat", "tokens", "fill_in")):
        del given["text"]
    request = pb.GenerateRequest(**given)  # type: ignore[arg-type]
    return Call(name, "Generate", request.SerializeToString(), codes or _BAD)


def _sampled(name: str, **fields: object) -> Call:
    sampling = pb.SamplingParams(**{"max_tokens": 1} | fields)  # type: ignore[arg-type]
    return _generate(name, sampling=sampling)


def _formed(name: str, **form: object) -> Call:
    return _generate(name, structured=pb.StructuredOutput(**form))  # type: ignore[arg-type]


def _embed(
    name: str, *codes: grpc.StatusCode, inputs: Sequence[pb.EmbedInput], **fields: object
) -> Call:
    given = {"request_id": name, "model": "letters", "inputs": inputs} | fields
    return Call(name, "Embed", pb.EmbedRequest(**given).SerializeToString(), codes or _BAD)  # type: ignore[arg-type]


def _chat(*turns: tuple[str, str], **fields: object) -> pb.ChatPrompt:
    messages = [
        pb.ChatMessage(role=role, content=[pb.ContentPart(text=text)]) for role, text in turns
    ]
    return pb.ChatPrompt(messages=messages, **fields)  # type: ignore[arg-type]


def _cases() -> Iterator[Call]:
    yield Call("no message", "Generate", b"\xff" * 100)
    yield Call("a message cut off", "Generate", b"\x0a\x7fabc")
    yield Call("groups in each other", "Generate", b"\x0b" * 10_000)
    yield Call("no message to the health service", "grpc.health.v1.Health/Watch", b"\xff" * 100)
    yield Call("no message to be embedded", "Embed", b"\xff" * 100)
    yield _generate("a way of thinking that is none", chat=_chat(("user", "x"), thinking=99))
    yield Call("no such method", "Erase", b"", (Code.UNIMPLEMENTED,))
    yield Call("no such service", "evil.Service/Run", b"", (Code.UNIMPLEMENTED,))
    yield Call(
        "another's reflection",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        b"",
        (Code.UNIMPLEMENTED,),
    )
    yield Call("a message of 80 MB", "Tokenize", bytes(80_000_000), (Code.RESOURCE_EXHAUSTED,))
    yield Call("nothing at all", "Generate", b"", (*_BAD, *_GONE))
    yield _generate("no such model", *_GONE, model="nobody")
    yield _generate("a model's path", *_GONE, model="../../chat")
    yield _generate("a model of 100 kB", *_GONE, model="a" * 100_000)
    yield _generate("a model for embeddings", *_BAD, *_GONE, model="letters")
    yield _generate("no prompt", tokens=pb.TokenIds())
    yield _generate("tokens beyond the vocabulary", tokens=pb.TokenIds(ids=[1 << 31]))
    yield _generate("more tokens than the context", tokens=pb.TokenIds(ids=[1] * 5000))
    yield _generate("a billion sequences", *_BAD, Code.RESOURCE_EXHAUSTED, n=10**9)
    yield _generate(
        "a middle that the model cannot fill", fill_in=pb.FillIn(prefix="a", suffix="b")
    )
    yield _generate("a conversation of none", chat=_chat())
    yield _generate("a role that is none", chat=_chat(("root", "x")))
    yield _generate(
        "a call of no tool", chat=_chat(("user", "x"), tool_choice=3, tool_choice_name="f")
    )
    yield _generate("a choice that is none", chat=_chat(("user", "x"), tool_choice=99))
    yield _generate(
        "a tool's schema that is none",
        chat=_chat(
            ("user", "x"),
            tools=[pb.Tool(name="f", parameters_json="{", strict=True)],
            tool_choice=2,
        ),
    )
    yield _generate(
        "an image",
        chat=pb.ChatPrompt(
            messages=[
                pb.ChatMessage(
                    role="user", content=[pb.ContentPart(image=pb.Image(media_type="x", data=b"y"))]
                )
            ]
        ),
    )
    yield _sampled("a temperature below zero", temperature=-1)
    yield _sampled("a temperature that is no number", temperature=float("nan"))
    yield _sampled("an infinite temperature", temperature=float("inf"))
    yield _sampled("top_p of two", top_p=2)
    yield _sampled("top_k below zero", top_k=-5)
    yield _sampled("min_p of no number", min_p=float("nan"))
    yield _sampled("a penalty of no number", presence_penalty=float("nan"))
    yield _sampled("a repetition penalty of zero", repetition_penalty=0)
    yield _sampled("a bias beyond the vocabulary", logit_bias={1 << 31: 1.0})
    yield _sampled("a bias of no number", logit_bias={1: float("nan")})
    yield _sampled("a million likeliest tokens", logprobs=10**6)
    yield _sampled("an empty stop", stop=[""])
    yield _sampled("5,000 stops", stop=[str(number) for number in range(5000)])
    yield _formed("a schema that is none", json_schema="{")
    yield _formed("a schema of a file", json_schema='{"$ref":"file:///secret"}')
    yield _formed("an object that is false", json_object=False)
    yield _formed("a regex that is none", regex="([")
    yield _formed("a regex that explodes", regex="((((a{1,99}){1,99}){1,99}){1,99}){1,99}")
    yield _formed("a grammar that is none", lark="start: (((")
    yield _embed("nothing to embed", inputs=[])
    yield _embed(
        "tokens of no vocabulary", inputs=[pb.EmbedInput(tokens=pb.TokenIds(ids=[1 << 31]))]
    )
    yield _embed("a model for chat", *_BAD, *_GONE, inputs=[pb.EmbedInput(text="x")], model="chat")
    yield _embed(
        "more dimensions than there are", inputs=[pb.EmbedInput(text="x")], dimensions=10**6
    )
    yield Call(
        "loading what is not there",
        "Load",
        pb.LoadRequest(model="nobody").SerializeToString(),
        _GONE,
    )
    yield Call(
        "loading a path",
        "Load",
        pb.LoadRequest(model="../../x").SerializeToString(),
        (*_GONE, *_BAD),
    )
    yield Call(
        "unloading what is not there",
        "Unload",
        pb.UnloadRequest(model="nobody").SerializeToString(),
        _GONE,
    )
    yield Call(
        "settling what never ran",
        "Settle",
        pb.SettleRequest(request_id="nobody").SerializeToString(),
        _GONE,
    )
    yield Call("settling nothing", "Settle", b"", (*_GONE, *_BAD))


CASES = list(_cases())
