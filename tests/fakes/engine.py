"""A complete engine without a model, over a real Unix socket.

It implements every call of engine_v1.proto and grpc.health.v1. Its tokens are characters (the
id is the code point), its chat model answers with the last user message, its embedding model
counts letters, its rerank model the query's words that a document has; so every count in a test
can be worked out by hand. What a test wants to happen (slow steps, a pause, a fault) is set on
`FakeEngine.behaviour`.

The answer of the chat model, sequence i of n:
    the last user message, or the prompt itself for a plain prompt;
    " #i" behind it for i > 0; " ~S" behind it if the temperature is above 0, S being the seed;
    "hm" as reasoning before it if thinking is on;
    tool calls instead of it if tools are given and the message has lines "call NAME ARGUMENTS";
    only the first of them if calls may not be parallel, only of the named function if one is named;
    where a call is required and no line makes one, the first function with the least arguments;
    if the answer has a form: the message where it has that form, else the least value that has;
    the next of `Behaviour.answers` instead of all this, while there is one.
A prediction is right as far as the answer begins with it, and all of the rest was tried in vain.
One end token follows, unless a limit or a stop ends it.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn
from urllib.parse import quote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from appliance.pb import engine_v1_pb2 as pb
from appliance.pb import engine_v1_pb2_grpc as pb_grpc
from tests.fakes.forms import KNOWN, formed, least, unknown_keyword

CHAT, EMBEDDING, RERANK = "echo", "letters", "overlap"
DIGEST = {CHAT: "ab" * 32, EMBEDDING: "cd" * 32, RERANK: "ef" * 32}
PAIR_TOKENS = 3
"""The rerank model's, for each pair beside its characters."""
DIMENSIONS = 26
CONTEXT = 4096
VOCABULARY = 0xD800
"""Code points from here on may not be characters."""
LOGPROB = -0.5
NO_EYES = "could not process image: this model reads text only"
_NEVER = 1 << 30

Said = str | list[tuple[str, str]]
"""A text, or (name, arguments) of each call."""


@dataclass
class Fault:
    """An error to fail with, after `after_tokens` steps; None: before the call is accepted."""

    status: grpc.StatusCode
    message: str = "made to fail"
    code: str = ""
    hint: str = ""
    param: str = ""
    after_tokens: int | None = None


@dataclass
class Behaviour:
    """What tests may change while the engine runs."""

    seconds_per_step: float = 0.0
    pause_after: int = _NEVER
    """Steps after which a call waits for `release` or its cancellation."""
    pause_before_accept: bool = False
    fault: Fault | None = None
    finish_with: pb.FinishReason | None = None
    together: int = 1
    """Events in one message at most; one where steps are slow, or to end in a fault."""
    slots: int = 64
    context: int = CONTEXT
    answers: deque[Said] = field(default_factory=deque)
    """What the chat model says to the next prompts, whatever they ask: a text, or calls."""
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def one_by_one(self) -> bool:
        """Whether an event must not wait for those behind it."""
        waits = self.seconds_per_step or self.pause_after != _NEVER
        return bool(waits or self.fault)


Kind = Literal["text", "reasoning", "call", "arguments", "cut", "end"]


@dataclass(frozen=True)
class Piece:
    """One token and what a reader sees of it."""

    kind: Kind
    token: str
    call: int = 0


@dataclass
class Call:
    """One Generate, Embed or Score call, kept for Settle and for the tests."""

    request_id: str
    sequences: list[pb.Usage]
    cancelled: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


class FakeEngine:
    """`with FakeEngine(path) as engine:` serves on the Unix socket `path`."""

    def __init__(self, socket: Path) -> None:
        self.behaviour = Behaviour()
        self.models = {name: make() for name, make in _MODELS.items()}
        self.requests: list[pb.GenerateRequest | pb.EmbedRequest | pb.ScoreRequest] = []
        self.calls: dict[str, Call] = {}
        self.under_way: dict[str, Call] = {}
        self.stats: dict[str, pb.ModelStats] = {}
        self.prefixes: dict[str, set[str]] = defaultdict(set)
        self.changed = threading.Condition()
        self._socket = socket
        self._server: grpc.Server | None = None

    def start(self) -> None:
        """Serve; the socket exists when this returns."""
        self._socket.unlink(missing_ok=True)
        server = grpc.server(ThreadPoolExecutor(64, thread_name_prefix="fake-engine"))
        self.health = health.HealthServicer()
        self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        pb_grpc.add_EngineServicer_to_server(_Servicer(self), server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        server.add_insecure_port(f"unix:{self._socket}")
        server.start()
        self._server = server

    def stop(self) -> None:
        """End at once, as a crash would: running calls break off."""
        assert self._server is not None
        stopped = self._server.stop(None)
        # Only now: a call that goes on before it is broken off would say one token more.
        self.behaviour.release.set()
        stopped.wait()
        self._socket.unlink(missing_ok=True)

    def __enter__(self) -> FakeEngine:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def running(self) -> int:
        """Sequences of calls that have not ended."""
        return sum(len(call.sequences) for call in list(self.under_way.values()))

    def begin(self, call: Call) -> None:
        """`call` runs from now on."""
        self.calls[call.request_id] = self.under_way[call.request_id] = call

    def wait_until_idle(self, seconds: float = 120.0) -> None:
        """Return when nothing runs. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        for call in list(self.calls.values()):
            if not call.ended.wait(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"{call.request_id} still runs")

    def last_call(self) -> Call:
        """The call that began last."""
        return list(self.calls.values())[-1]


class _Servicer(pb_grpc.EngineServicer):
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()

    def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateEvent]:
        engine = self._engine
        engine.requests.append(request)
        self._expect(request.model, "chat", context)
        _check_tokens(request.tokens, "prompt", context)
        try:
            check(request)
        except UnfitError as error:
            _abort(context, error.fault)
        prompt = _render(request)
        if not prompt:
            message = "the prompt is empty"
            _abort(context, Fault(grpc.StatusCode.INVALID_ARGUMENT, message, param="prompt"))
        context_length = engine.behaviour.context
        if len(prompt) >= context_length:
            _abort(
                context,
                Fault(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"prompt is too long: {len(prompt)} tokens > {context_length} maximum",
                    code="context_length_exceeded",
                    param="messages",
                ),
            )
        n = request.n or 1
        with self._lock:
            if engine.running + n > engine.behaviour.slots:
                _abort(context, Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full"))
            call = Call(request.request_id, [pb.Usage() for _ in range(n)])
            engine.begin(call)
        wake = threading.Event()
        context.add_callback(wake.set)
        fault = engine.behaviour.fault
        try:
            if engine.behaviour.pause_before_accept:
                _wait(engine.behaviour.release, wake)
            if fault is not None and fault.after_tokens is None:
                _abort(context, fault)
            yield pb.GenerateEvent(
                accepted=pb.Accepted(prompt_tokens=len(prompt), bundle_digest=DIGEST[request.model])
            )
            steps = self._steps(request, prompt, call, context, wake)
            one_by_one = engine.behaviour.one_by_one or request.deadline_ms
            yield from _together(steps, 1 if one_by_one else engine.behaviour.together)
        except GeneratorExit:
            call.cancelled = True
            raise
        finally:
            self._end(request.model, call)

    def _steps(
        self,
        request: pb.GenerateRequest,
        prompt: str,
        call: Call,
        context: grpc.ServicerContext,
        wake: threading.Event,
    ) -> Iterator[pb.GenerateEvent]:
        behaviour = self._engine.behaviour
        cached = self._cached(request.cache_namespace, prompt)
        scripts = [self._script(request, index) for index in range(len(call.sequences))]
        limit = request.sampling.max_tokens or behaviour.context - len(prompt)
        running, said = dict(enumerate(scripts)), [""] * len(scripts)
        deadline = time.monotonic() + (request.deadline_ms or _NEVER) / 1000
        for step in itertools.count():
            if step >= behaviour.pause_after:
                _wait(behaviour.release, wake)
            if behaviour.seconds_per_step:
                wake.wait(behaviour.seconds_per_step)
            if not context.is_active():
                call.cancelled = True
                return
            fault = behaviour.fault
            if fault is not None and fault.after_tokens == step:
                _abort(context, fault)
            if time.monotonic() >= deadline:
                yield from _expired(call, running)
                _abort(context, Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "the call's time is up"))
            for index, script in list(running.items()):
                usage = call.sequences[index]
                usage.prompt_tokens, usage.cached_tokens = len(prompt), cached
                piece = script[step]
                usage.generated_tokens += 1
                usage.reasoning_tokens += piece.kind == "reasoning"
                said[index] += piece.token if piece.kind == "text" else ""
                right = _common(request.prediction, said[index])
                usage.accepted_prediction_tokens = right
                usage.rejected_prediction_tokens = len(request.prediction) - right
                if piece.kind != "end":
                    yield pb.GenerateEvent(delta=_delta(request, index, piece))
                end = _finish(script, step, limit)
                if end is not None:
                    del running[index]
                    reason = behaviour.finish_with or end
                    yield pb.GenerateEvent(
                        finished=pb.Finished(
                            index=index, reason=reason, usage=usage, stop=_stop_of(request, script)
                        )
                    )
            if not running:
                return

    def _script(self, request: pb.GenerateRequest, index: int) -> list[Piece]:
        answers = self._engine.behaviour.answers
        if not answers or request.WhichOneof("prompt") != "chat":
            return _script(request, index)
        said = answers.popleft()
        calls = () if isinstance(said, str) else _said(said)
        text = [Piece("text", char) for char in said] if isinstance(said, str) else ()
        return [*_thoughts(request), *text, *calls, Piece("end", "")]

    def Embed(  # noqa: N802
        self, request: pb.EmbedRequest, context: grpc.ServicerContext
    ) -> pb.EmbedResponse:
        engine = self._engine
        engine.requests.append(request)
        self._expect(request.model, "embedding", context)
        if engine.behaviour.fault is not None:
            _abort(context, engine.behaviour.fault)
        if request.dimensions > DIMENSIONS:
            _abort(
                context,
                Fault(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"the model has {DIMENSIONS} dimensions",
                    code="invalid_value",
                    param="dimensions",
                ),
            )
        for item in request.inputs:
            _check_tokens(item.tokens, "input", context)
        texts = [_text_of(item) for item in request.inputs]
        with self._whole(request, map(len, texts), context) as tokens:
            return pb.EmbedResponse(
                embeddings=[
                    pb.Embedding(values=letters(text, request.dimensions)) for text in texts
                ],
                prompt_tokens=tokens,
                bundle_digest=DIGEST[request.model],
            )

    def Score(  # noqa: N802
        self, request: pb.ScoreRequest, context: grpc.ServicerContext
    ) -> pb.ScoreResponse:
        engine = self._engine
        engine.requests.append(request)
        self._expect(request.model, "rerank", context)
        if engine.behaviour.fault is not None:
            _abort(context, engine.behaviour.fault)
        limit = request.max_document_tokens or CONTEXT
        documents = [document[:limit] for document in request.documents]
        queries = list(request.queries) * (len(documents) // len(request.queries))
        around = PAIR_TOKENS + len(request.instruction)
        lengths = [
            len(query) + len(text) + around for query, text in zip(queries, documents, strict=True)
        ]
        if max(lengths) > CONTEXT:
            _abort(
                context,
                Fault(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"the model reads {CONTEXT} tokens",
                    code="context_length_exceeded",
                    param=f"documents[{lengths.index(max(lengths))}]",
                ),
            )
        with self._whole(request, lengths, context) as tokens:
            return pb.ScoreResponse(
                scores=map(overlap, queries, documents),
                prompt_tokens=tokens,
                bundle_digest=DIGEST[request.model],
            )

    @contextmanager
    def _whole(
        self,
        request: pb.EmbedRequest | pb.ScoreRequest,
        lengths: Iterable[int],
        context: grpc.ServicerContext,
    ) -> Iterator[int]:
        """A call of one answer over texts of these lengths; their sum."""
        behaviour = self._engine.behaviour
        call = Call(request.request_id, [pb.Usage(prompt_tokens=length) for length in lengths])
        self._engine.begin(call)
        wake = threading.Event()
        context.add_callback(wake.set)
        try:
            if behaviour.pause_before_accept:
                _wait(behaviour.release, wake)
            call.cancelled = not context.is_active()
            yield sum(usage.prompt_tokens for usage in call.sequences)
        finally:
            self._end(request.model, call)

    def Settle(  # noqa: N802
        self, request: pb.SettleRequest, context: grpc.ServicerContext
    ) -> pb.SettleResponse:
        call = self._engine.calls.get(request.request_id)
        if call is None:
            _abort(context, Fault(grpc.StatusCode.NOT_FOUND, "no such call", code="not_found"))
        call.ended.wait(60)
        return pb.SettleResponse(sequences=call.sequences)

    def Load(  # noqa: N802
        self, request: pb.LoadRequest, context: grpc.ServicerContext
    ) -> pb.LoadResponse:
        if request.model not in _MODELS:
            _abort(context, _unknown_model(request.model))
        self._engine.models[request.model] = _MODELS[request.model]()
        return pb.LoadResponse(model=self._engine.models[request.model])

    def Unload(  # noqa: N802
        self, request: pb.UnloadRequest, context: grpc.ServicerContext
    ) -> pb.UnloadResponse:
        if self._engine.models.pop(request.model, None) is None:
            _abort(context, _unknown_model(request.model))
        return pb.UnloadResponse()

    def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=self._engine.models.values())

    def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: grpc.ServicerContext
    ) -> pb.TokenizeResponse:
        if request.WhichOneof("prompt") == "chat":
            self._expect(request.model, "chat", context)
            return pb.TokenizeResponse(ids=map(ord, _render_chat(request.chat)))
        self._expect(request.model, None, context)
        return pb.TokenizeResponse(ids=map(ord, request.text))

    def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: grpc.ServicerContext
    ) -> pb.DetokenizeResponse:
        self._expect(request.model, None, context)
        _check_tokens(request.tokens, "tokens", context)
        return pb.DetokenizeResponse(text="".join(map(chr, request.tokens.ids)))

    def Stats(  # noqa: N802
        self, request: pb.StatsRequest, context: grpc.ServicerContext
    ) -> pb.StatsResponse:
        stats = [self._stats(model) for model in self._engine.models]
        running = self._engine.running
        for item in stats:
            item.sequences_running = running if item.model == CHAT else 0
        return pb.StatsResponse(models=stats)

    def _expect(self, name: str, kind: str | None, context: grpc.ServicerContext) -> None:
        model = self._engine.models.get(name)
        if model is None:
            _abort(context, _unknown_model(name))
        if kind is not None and model.kind != kind:
            _abort(
                context,
                Fault(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"{name} is not a model for this",
                    code="wrong_model_kind",
                    param="model",
                ),
            )

    def _cached(self, namespace: str, prompt: str) -> int:
        """The longest prefix that an earlier prompt of the namespace has, but one token."""
        with self._lock:
            known = self._engine.prefixes[namespace] if namespace else set()
            lengths = [_common(prompt, other) for other in known]
            known.add(prompt)
        return min(max(lengths, default=0), len(prompt) - 1)

    def _stats(self, model: str) -> pb.ModelStats:
        empty = pb.ModelStats(model=model, cache_bytes_total=1000, cache_bytes_used=250)
        return self._engine.stats.setdefault(model, empty)

    def _end(self, model: str, call: Call) -> None:
        with self._lock:
            stats = self._stats(model)
            stats.prompt_tokens += sum(usage.prompt_tokens for usage in call.sequences)
            stats.generated_tokens += sum(usage.generated_tokens for usage in call.sequences)
            stats.prefix_cache_queries += sum(usage.prompt_tokens for usage in call.sequences)
            stats.cached_tokens += sum(usage.cached_tokens for usage in call.sequences)
            right = sum(usage.accepted_prediction_tokens for usage in call.sequences)
            wrong = sum(usage.rejected_prediction_tokens for usage in call.sequences)
            stats.accepted_tokens += right
            stats.drafted_tokens += right + wrong
            if call.cancelled:
                stats.sequences_cancelled += len(call.sequences)
            else:
                stats.sequences_finished += len(call.sequences)
        self._engine.under_way.pop(call.request_id, None)
        call.ended.set()


def _together(events: Iterable[pb.GenerateEvent], most: int) -> Iterator[pb.GenerateEvent]:
    """`events` in messages of so many."""
    events = iter(events)
    for first in events:
        first.further.extend(itertools.islice(events, most - 1))
        yield first


def _expired(call: Call, running: Iterable[int]) -> Iterator[pb.GenerateEvent]:
    for index in running:
        yield pb.GenerateEvent(
            finished=pb.Finished(
                index=index, reason=pb.FINISH_REASON_DEADLINE, usage=call.sequences[index]
            )
        )


def _check_tokens(tokens: pb.TokenIds, param: str, context: grpc.ServicerContext) -> None:
    if max(tokens.ids, default=0) >= VOCABULARY:
        message = f"token ids must be below {VOCABULARY}"
        _abort(context, Fault(grpc.StatusCode.INVALID_ARGUMENT, message, param=param))


def _common(one: str, other: str) -> int:
    return sum(
        1
        for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    )


def letters(text: str, dimensions: int = 0) -> list[float]:
    """The embedding of `text`: its letters counted, unit length."""
    counts = [1.0 + text.lower().count(chr(97 + i)) for i in range(dimensions or DIMENSIONS)]
    length = math.sqrt(sum(count * count for count in counts))
    return [count / length for count in counts]


def overlap(query: str, document: str) -> float:
    """The score of a pair: the share of the query's words that the document has."""
    words = set(query.lower().split())
    return len(words & set(document.lower().split())) / max(1, len(words))


def _script(request: pb.GenerateRequest, index: int) -> list[Piece]:
    """Every token that sequence `index` would sample."""
    pieces = _thoughts(request)
    calls = _calls(request)
    if calls:
        return [*pieces, *_said(calls), Piece("end", "")]
    text = _answer(request, index)
    stop = min((text.find(s) for s in request.sampling.stop if s in text), default=-1)
    if stop >= 0:
        length = next(len(s) for s in request.sampling.stop if text.startswith(s, stop))
        pieces += [Piece("text", char) for char in text[:stop]]
        return pieces + [Piece("cut", char) for char in text[stop : stop + length]]
    for char in text:
        if ord(char) in request.sampling.stop_token_ids:
            return [*pieces, Piece("end", char)]
        pieces.append(Piece("text", char))
    if request.sampling.ignore_eos:
        return pieces + [Piece("text", ".")] * CONTEXT
    return [*pieces, Piece("end", "")]


def _thoughts(request: pb.GenerateRequest) -> list[Piece]:
    if request.chat.thinking in (pb.THINKING_MODE_DEFAULT, pb.THINKING_MODE_OFF):
        return []
    return [Piece("reasoning", char) for char in "hm"]


def _said(calls: Iterable[tuple[str, str]]) -> Iterator[Piece]:
    for number, (name, arguments) in enumerate(calls):
        yield Piece("call", name, number)
        yield from (Piece("arguments", char, number) for char in arguments)


def _answer(request: pb.GenerateRequest, index: int) -> str:
    sampling = request.sampling
    text = _question(request)
    if request.HasField("structured"):
        return formed(request.structured, text)
    if request.chat.continue_final_message:
        text = text.removeprefix(_text(request.chat.messages[-1]))
    if index:
        text += f" #{index}"
    if sampling.temperature > 0:
        text += f" ~{sampling.seed if sampling.HasField('seed') else time.monotonic_ns()}"
    banned = {chr(token) for token, bias in sampling.logit_bias.items() if bias <= -100}
    return "".join(char for char in text if char not in banned)


def _question(request: pb.GenerateRequest) -> str:
    if request.WhichOneof("prompt") == "chat":
        users = [m for m in request.chat.messages if m.role == "user"]
        return _text(users[-1]) if users else ""
    return _render(request)


def _calls(request: pb.GenerateRequest) -> list[tuple[str, str]]:
    """(name, arguments) of each call, as the module's text has it."""
    chat = request.chat
    tools = [tool for tool in chat.tools if chat.tool_choice_name in ("", tool.name)]
    if not tools or chat.tool_choice == pb.TOOL_CHOICE_NONE:
        return []
    names = {tool.name for tool in tools}
    lines = [line.split(" ", 2) for line in _question(request).splitlines()]
    calls = [(ln[1], ln[2]) for ln in lines if len(ln) == 3 and ln[0] == "call" and ln[1] in names]
    if not calls and chat.tool_choice in (pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NAMED):
        calls = [(tools[0].name, json.dumps(least(json.loads(tools[0].parameters_json))))]
    single = chat.HasField("parallel_tool_calls") and not chat.parallel_tool_calls
    return calls[:1] if single or chat.tool_choice == pb.TOOL_CHOICE_NAMED else calls


def _finish(script: Sequence[Piece], step: int, limit: int) -> pb.FinishReason | None:
    if step + 1 == len(script):
        called = any(piece.kind == "call" for piece in script)
        return pb.FINISH_REASON_TOOL_CALLS if called else pb.FINISH_REASON_STOP
    return pb.FINISH_REASON_LENGTH if step + 1 == limit else None


def _stop_of(request: pb.GenerateRequest, script: Sequence[Piece]) -> str:
    cut = "".join(piece.token for piece in script if piece.kind == "cut")
    return cut if cut in request.sampling.stop else ""


def _delta(request: pb.GenerateRequest, index: int, piece: Piece) -> pb.Delta:
    delta = pb.Delta(index=index, tokens=1, token_ids=map(ord, piece.token[:1]))
    if piece.kind == "text":
        delta.text = piece.token
        if request.sampling.HasField("logprobs"):
            delta.logprobs.append(_logprob(piece.token, request.sampling.logprobs))
    elif piece.kind == "reasoning":
        delta.reasoning = piece.token
    elif piece.kind == "call":
        number = piece.call + sum(len(m.tool_calls) for m in request.chat.messages)
        delta.tool_calls.add(index=piece.call, id=f"call_{index}_{number}", name=piece.token)
    elif piece.kind == "arguments":
        delta.tool_calls.add(index=piece.call, arguments_json=piece.token)
    return delta


def _logprob(char: str, top: int) -> pb.TokenLogprob:
    others = [chr(ord("a") + i) for i in range(top)]
    return pb.TokenLogprob(
        token_id=ord(char),
        token=char.encode(),
        logprob=LOGPROB,
        top=[
            pb.TopLogprob(token_id=ord(other), token=other.encode(), logprob=LOGPROB - 1 - i)
            for i, other in enumerate(others)
        ],
    )


def _render(request: pb.GenerateRequest) -> str:
    kind = request.WhichOneof("prompt")
    if kind == "chat":
        return _render_chat(request.chat)
    if kind == "fill_in":
        return f"<{request.fill_in.prefix}|{request.fill_in.suffix}>"
    return request.text if kind == "text" else "".join(map(chr, request.tokens.ids))


def _render_chat(chat: pb.ChatPrompt) -> str:
    seen = () if chat.tool_choice == pb.TOOL_CHOICE_NONE else chat.tools
    tools = "".join(f"{tool.name} {json.loads(tool.parameters_json)}\n" for tool in seen)
    return tools + "".join(f"{m.role}: {m.reasoning}{_text(m)}\n" for m in chat.messages)


def _text(message: pb.ChatMessage) -> str:
    return "".join(part.text for part in message.content)


def _text_of(item: pb.EmbedInput) -> str:
    return item.text if item.HasField("text") else "".join(map(chr, item.tokens.ids))


def _wait(release: threading.Event, wake: threading.Event) -> None:
    while not release.is_set() and not wake.wait(0.005):
        pass


class UnfitError(Exception):
    """What is asked for contradicts itself, or this engine cannot do it."""

    def __init__(self, message: str, param: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.fault = Fault(grpc.StatusCode.INVALID_ARGUMENT, message, code=code, param=param)


def check(request: pb.GenerateRequest) -> None:
    """Refuse what the protocol refuses of forms and choices. Raises UnfitError."""
    chat, forced = request.chat, (pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NAMED)
    for index, message in enumerate(chat.messages):
        for at, part in enumerate(message.content):
            if part.WhichOneof("part") == "image":
                raise UnfitError(NO_EYES, f"messages[{index}].content[{at}]")
    if chat.tool_choice in forced and not chat.tools:
        raise UnfitError("there are no tools to call", "tool_choice")
    if chat.tool_choice == pb.TOOL_CHOICE_NAMED and chat.tool_choice_name not in {
        tool.name for tool in chat.tools
    }:
        raise UnfitError("there is no such tool", "tool_choice")
    if chat.continue_final_message and (
        request.HasField("structured") or chat.tool_choice in forced
    ):
        raise UnfitError("a continuation cannot have a form", "continue_final_message")
    schemas = [("structured.json_schema", request.structured.json_schema or "{}")]
    for index, tool in enumerate(chat.tools):
        if tool.strict or chat.tool_choice in forced:
            schemas.append((f"tools[{index}].function.parameters", tool.parameters_json))
    for param, text in schemas:
        found = unknown_keyword(json.loads(text), param)
        if found is not None:
            raise UnfitError(f"only {sorted(KNOWN)}", found, "unsupported_parameter")
    if request.structured.WhichOneof("kind") in ("regex", "lark"):
        kind = request.structured.WhichOneof("kind")
        raise UnfitError(f"no {kind} here", f"structured.{kind}", "unsupported_parameter")


def _unknown_model(name: str) -> Fault:
    return Fault(
        grpc.StatusCode.NOT_FOUND,
        f"the model {name!r} is not loaded",
        code="model_not_found",
        hint="GET /v1/models lists those that are",
    )


def _abort(context: grpc.ServicerContext, fault: Fault) -> NoReturn:
    metadata = {
        "appliance-code": fault.code,
        "appliance-hint": quote(fault.hint),
        "appliance-param": quote(fault.param),
    }
    context.set_trailing_metadata(tuple((k, v) for k, v in metadata.items() if v))
    context.abort(fault.status, fault.message)


def _chat_model() -> pb.Model:
    return pb.Model(
        name=CHAT,
        version="1",
        kind="chat",
        bundle_digest=DIGEST[CHAT],
        context_length=CONTEXT,
        max_sequences=16,
        state=pb.MODEL_STATE_SERVING,
        created=1_700_000_000,
        supports_tools=True,
        supports_thinking=True,
    )


def _embedding_model() -> pb.Model:
    return pb.Model(
        name=EMBEDDING,
        version="1",
        kind="embedding",
        bundle_digest=DIGEST[EMBEDDING],
        context_length=CONTEXT,
        state=pb.MODEL_STATE_SERVING,
        created=1_700_000_001,
        dimensions=DIMENSIONS,
    )


def _rerank_model() -> pb.Model:
    return pb.Model(
        name=RERANK,
        version="1",
        kind="rerank",
        bundle_digest=DIGEST[RERANK],
        context_length=CONTEXT,
        state=pb.MODEL_STATE_SERVING,
        created=1_700_000_002,
        pair_tokens=PAIR_TOKENS,
    )


_MODELS = {CHAT: _chat_model, EMBEDDING: _embedding_model, RERANK: _rerank_model}
