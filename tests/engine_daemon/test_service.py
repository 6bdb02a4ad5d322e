"""The daemon over a real socket: what it answers, what it refuses, what it counts."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import unquote

import grpc
import pytest

from appliance.pb import engine_v1_pb2 as pb
from tests.engine_daemon.conftest import Client, RunNode, apart, chat, rest, run


def tokens(events: list[pb.GenerateEvent], index: int = 0) -> list[int]:
    deltas = [e.delta for e in events if e.HasField("delta") and e.delta.index == index]
    return [token for delta in deltas for token in delta.token_ids]


def ends(events: list[pb.GenerateEvent]) -> list[pb.Finished]:
    return [event.finished for event in events if event.HasField("finished")]


async def refused(call: Any) -> tuple[grpc.StatusCode, dict[str, str], str]:
    """Status, appliance metadata and text of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    pairs: Any = error.trailing_metadata() or ()
    trailing = {key: unquote(value) for key, value in pairs}
    return error.code(), trailing, error.details() or ""


def test_a_chat_streams_accepted_then_deltas_then_its_end(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        async with node.run() as client:
            events = await client.generate(chat("How do I add a model?", max_tokens=20))
            assert events[0].accepted.prompt_tokens > 10
            assert events[0].accepted.bundle_digest == node.store.get("chat").digest
            (end,) = ends(events)
            assert events[-1].finished == end
            assert end.reason == pb.FINISH_REASON_LENGTH
            assert end.usage.prompt_tokens == events[0].accepted.prompt_tokens
            assert end.usage.generated_tokens == len(tokens(events)) == 20
            assert sum(event.delta.tokens for event in events) == 20

    run(scenario())


def test_n_sequences_each_have_their_end(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            request = chat("user", max_tokens=5, temperature=1.0, seed=3)
            request.n = 3
            events = await client.generate(request)
            assert sorted(end.index for end in ends(events)) == [0, 1, 2]
            assert all(len(tokens(events, index)) == 5 for index in range(3))

    run(scenario())


def test_many_calls_at_once_equal_the_same_calls_alone(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node(max_sequences=4, max_waiting=100).run() as client:
            requests = [chat(f"call {n}", max_tokens=5 + n) for n in range(12)]
            together = await asyncio.gather(*(client.generate(r) for r in requests))
            for request, events in zip(requests, together, strict=True):
                assert tokens(events) == tokens(await client.generate(request))

    run(scenario())


def test_a_text_prompt_and_its_token_ids_are_the_same(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            sampling = pb.SamplingParams(temperature=0.0, max_tokens=8)
            text = pb.GenerateRequest(model="chat", text="The sum of", sampling=sampling)
            ids = await client.engine.Tokenize(pb.TokenizeRequest(model="chat", text="The sum of"))
            by_ids = pb.GenerateRequest(
                model="chat", tokens=pb.TokenIds(ids=ids.ids), sampling=sampling
            )
            assert tokens(await client.generate(text)) == tokens(await client.generate(by_ids))

    run(scenario())


def test_token_ids_become_the_text_they_came_from(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            text = "The sum of <think> and 3 is é"
            tokenized = await client.engine.Tokenize(pb.TokenizeRequest(model="chat", text=text))
            tokens = pb.TokenIds(ids=tokenized.ids)
            back = await client.engine.Detokenize(pb.DetokenizeRequest(model="chat", tokens=tokens))
            assert back.text == text
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.engine.Detokenize(
                    pb.DetokenizeRequest(model="chat", tokens=pb.TokenIds(ids=[1 << 31]))
                )
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario())


def test_a_chat_is_tokenized_as_it_is_generated_from(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            request = chat("count me", max_tokens=1)
            counted = await client.engine.Tokenize(
                pb.TokenizeRequest(model="chat", chat=request.chat)
            )
            events = await client.generate(request)
            assert events[0].accepted.prompt_tokens == len(counted.ids)

    run(scenario())


def test_logprobs_come_with_their_bytes(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            events = await client.generate(chat("user", max_tokens=4, logprobs=3))
            logprobs = [lp for event in events for lp in event.delta.logprobs]
            assert len(logprobs) == 4
            for logprob in logprobs:
                assert len(logprob.top) == 3
                assert logprob.top[0].token_id == logprob.token_id, "it was greedy"
                assert logprob.top[0].logprob == logprob.logprob < 0
                assert logprob.token

    run(scenario())


def test_embeddings_keep_their_order(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        async with node.run() as client:
            texts = ["a", "which model is active?", "b c", "the audit log"]
            inputs = [pb.EmbedInput(text=text) for text in texts]
            answer = await client.engine.Embed(pb.EmbedRequest(model="words", inputs=inputs))
            assert answer.bundle_digest == node.store.get("words").digest
            assert answer.prompt_tokens > len(texts)
            for given, embedding in zip(inputs, answer.embeddings, strict=True):
                request = pb.EmbedRequest(model="words", inputs=[given])
                alone = (await client.engine.Embed(request)).embeddings[0]
                assert list(alone.values) == pytest.approx(list(embedding.values), abs=2e-6)

    run(scenario())


def test_cancelling_a_stream_stops_its_sequences_and_settles_exactly(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node(max_sequences=1)
        async with node.run() as client:
            request = chat("user", max_tokens=480)
            request.request_id = "req-1"
            with node.slow():
                stream = client.engine.Generate(request)
                received = 0
                async for message in stream:
                    received += sum(event.delta.tokens for event in apart([message]))
                    if received >= 3:
                        break
                stream.cancel()
                settled = await client.engine.Settle(pb.SettleRequest(request_id="req-1"))
            (usage,) = settled.sequences
            assert 3 <= usage.generated_tokens < 480
            stats = (await client.engine.Stats(pb.StatsRequest())).models[0]
            assert stats.generated_tokens == usage.generated_tokens
            assert (stats.sequences_running, stats.sequences_cancelled) == (0, 1)
            assert stats.cache_bytes_used == 0
            assert len(tokens(await client.generate(chat("user", max_tokens=3)))) == 3

    run(scenario())


def test_calls_that_are_over_as_soon_as_they_begin_are_all_answered(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            for _ in range(100):
                events = await client.generate(chat("user", max_tokens=1))
                assert events[0].HasField("accepted")
                assert [end.usage.generated_tokens for end in ends(events)] == [1]

    run(scenario())


async def settled_tokens(client: Client, request_id: str) -> int:
    """How many the call generated; none if it is not known."""
    try:
        settled = await client.engine.Settle(pb.SettleRequest(request_id=request_id), timeout=120)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return 0
    return sum(usage.generated_tokens for usage in settled.sequences)


def test_a_call_that_is_cancelled_while_it_is_prepared_is_counted_as_it_was_computed(
    make_node: RunNode,
) -> None:
    async def scenario() -> None:
        async with make_node(max_sequences=2).run() as client:
            counted = 0
            for number in range(80):
                request = chat(f"{number} " * 40, max_tokens=2)
                request.request_id = f"req-{number}"
                stream = client.engine.Generate(request)
                await asyncio.sleep(number * 1e-4)
                stream.cancel()
                counted += await settled_tokens(client, request.request_id)
            stats = (await client.engine.Stats(pb.StatsRequest())).models[0]
            assert stats.generated_tokens == counted
            assert (stats.sequences_running, stats.sequences_waiting) == (0, 0)
            assert stats.cache_bytes_used == 0

    run(scenario())


def test_what_one_step_brings_comes_in_one_message(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            request = chat("user", max_tokens=20)
            request.n = 4
            accepted, *messages = [m async for m in client.engine.Generate(request)]
            assert not accepted.further
            # The first one computes the prompt alone, the others take it from there in one step.
            assert max(len(apart([message])) for message in messages) >= 3
            events = apart(messages)
            assert [len(tokens(events, index)) for index in range(4)] == [20] * 4
            assert sorted(end.index for end in ends(events)) == [0, 1, 2, 3]

    run(scenario())


def test_a_prediction_is_told_in_usage_and_in_the_stats(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            request = chat("user", max_tokens=30)
            request.sampling.temperature = 0
            request.sampling.ignore_eos = True
            events = await client.generate(request)
            said = "".join(event.delta.text for event in events)
            request.prediction = said
            again = await client.generate(request)
            assert "".join(event.delta.text for event in again) == said
            usage = again[-1].finished.usage
            assert usage.generated_tokens == 30
            stats = (await client.engine.Stats(pb.StatsRequest())).models[0]
            assert stats.generated_tokens == 60
            # How much is guessed depends on the clock; that the counts agree does not.
            assert usage.accepted_prediction_tokens <= stats.accepted_tokens
            assert usage.accepted_prediction_tokens <= usage.generated_tokens
            assert stats.accepted_tokens <= stats.drafted_tokens

    run(scenario())


def test_cached_tokens_are_told_per_call_after_a_cancel_and_in_the_stats(
    make_node: RunNode,
) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            told = []
            for number, namespace in enumerate(["one", "one", "two", ""]):
                request = chat("how do I add a model? " * 6, max_tokens=4)
                request.request_id, request.cache_namespace = f"req-{number}", namespace
                stream = client.engine.Generate(request)
                async for message in stream:
                    if message.delta.tokens:
                        break
                stream.cancel()
                settle = pb.SettleRequest(request_id=request.request_id)
                (usage,) = (await client.engine.Settle(settle)).sequences
                told.append(usage.cached_tokens)
            reused = usage.prompt_tokens - 1
            assert told == [0, reused, 0, 0]
            stats = (await client.engine.Stats(pb.StatsRequest())).models[0]
            assert stats.cached_tokens == reused
            assert stats.prefix_cache_queries == 4 * usage.prompt_tokens
            assert stats.prompt_tokens == stats.prefix_cache_queries - stats.cached_tokens

    run(scenario())


def test_an_ended_call_settles_too_and_an_unknown_one_is_not_found(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            request = chat("user", max_tokens=4)
            request.request_id, request.n = "req-2", 2
            events = await client.generate(request)
            settled = await client.engine.Settle(pb.SettleRequest(request_id="req-2"))
            by_index = sorted(ends(events), key=lambda end: end.index)
            assert list(settled.sequences) == [end.usage for end in by_index]
            code, _, _ = await refused(client.engine.Settle(pb.SettleRequest(request_id="x")))
            assert code is grpc.StatusCode.NOT_FOUND

    run(scenario())


def test_a_deadline_ends_the_call_and_frees_its_slot(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node(max_sequences=1).run() as client:
            request = chat("user", max_tokens=480)
            code, _, _ = await refused(_read_for(client, request, 0.05))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert len(tokens(await client.generate(chat("user", max_tokens=3)))) == 3

    run(scenario())


def test_a_deadline_of_the_request_ends_its_sequences_and_says_so(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node(max_sequences=1, max_context=512).run() as client:
            request = chat("user", max_tokens=480)
            request.n, request.deadline_ms, request.request_id = 2, 30, "late"
            events: list[pb.GenerateEvent] = []
            code, _, _ = await refused(_read_into(events, client.engine.Generate(request)))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert [end.reason for end in ends(events)] == [pb.FINISH_REASON_DEADLINE] * 2
            settled = await client.engine.Settle(pb.SettleRequest(request_id="late"))
            for index, usage in enumerate(settled.sequences):
                assert usage.generated_tokens == len(tokens(events, index)) < 480
            stats = (await client.engine.Stats(pb.StatsRequest())).models[0]
            assert (stats.sequences_expired, stats.sequences_running) == (2, 0)
            assert stats.generated_tokens == sum(u.generated_tokens for u in settled.sequences)

    run(scenario())


def test_a_higher_priority_preempts_and_the_other_goes_on(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node(max_sequences=1)
        async with node.run() as client:
            alone = tokens(await client.generate(chat("user", max_tokens=200)))
            low, high = chat("user", max_tokens=200), chat("system", max_tokens=2)
            low.caller, high.caller, high.priority = "a", "b", 1
            with node.slow():
                stream = client.engine.Generate(low)
                events = apart([await stream.read(), await stream.read()])
                await client.generate(high)
            assert tokens([*events, *await rest(stream)]) == alone
            stats = (await client.engine.Stats(pb.StatsRequest())).models[0]
            assert stats.preemptions == 1
            assert stats.recomputed_tokens > 0

    run(scenario())


def test_a_caller_has_a_bound_of_its_own_in_the_queue(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node(max_sequences=1, max_waiting=9, max_waiting_per_caller=1)
        async with node.run() as client:
            request = chat("user", max_tokens=480)
            request.caller = "a"
            with node.slow():
                streams = [client.engine.Generate(request) for _ in range(2)]
                for stream in streams:
                    await stream.read()
                code, trailing, _ = await refused(client.generate(request))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert trailing["appliance-code"] == "caller_queue_full"
            request.caller, request.sampling.max_tokens = "b", 1
            other = client.engine.Generate(request)
            assert (await other.read()).HasField("accepted")
            for stream in [*streams, other]:
                stream.cancel()

    run(scenario())


async def _read_into(events: list[pb.GenerateEvent], stream: Any) -> None:
    while True:
        message = await stream.read()
        if message is grpc.aio.EOF:  # type: ignore[attr-defined]
            return
        events += apart([message])


async def _read_for(client: Client, request: pb.GenerateRequest, seconds: float) -> None:
    async for _ in client.engine.Generate(request, timeout=seconds):
        pass


def message(**parts: Any) -> pb.ChatPrompt:
    return pb.ChatPrompt(messages=[pb.ChatMessage(**parts)])


BAD_REQUESTS: list[tuple[pb.GenerateRequest, str]] = [
    (pb.GenerateRequest(model="chat"), "prompt"),
    (pb.GenerateRequest(model="chat", text=""), "prompt"),
    (pb.GenerateRequest(model="chat", tokens=pb.TokenIds(ids=[99999])), "prompt"),
    (pb.GenerateRequest(model="chat", chat=pb.ChatPrompt()), "messages"),
    (pb.GenerateRequest(model="chat", chat=message(role="god")), "messages[0].role"),
    (
        pb.GenerateRequest(
            model="chat",
            chat=message(role="user", content=[pb.ContentPart(image=pb.Image(data=b"x"))]),
        ),
        "messages[0].content[0]",
    ),
    (chat("x" * 5000), "messages"),
    (chat("x", temperature=-1.0), "temperature"),
    (chat("x", top_p=2.0), "top_p"),
    (chat("x", top_k=-2), "top_k"),
    (chat("x", logprobs=50), "logprobs"),
    (chat("x", stop=[""]), "stop"),
    (chat("x", logit_bias={100_000: 1.0}), "logit_bias"),
    (pb.GenerateRequest(model="words", text="x"), "model"),
    (pb.GenerateRequest(model="chat", text="x", n=1000), "n"),
]


def test_bad_input_names_its_parameter(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            for request, param in BAD_REQUESTS:
                code, trailing, _ = await refused(client.generate(request))
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                assert trailing["appliance-param"] == param
                assert trailing["appliance-code"]
            embed = pb.EmbedRequest(model="words", inputs=[pb.EmbedInput(text="a")], dimensions=3)
            code, trailing, _ = await refused(client.engine.Embed(embed))
            assert (code, trailing["appliance-param"]) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "dimensions",
            )
            code, trailing, _ = await refused(
                client.engine.Embed(pb.EmbedRequest(model="chat", inputs=[pb.EmbedInput(text="a")]))
            )
            assert trailing["appliance-param"] == "model"

    run(scenario())


def test_a_prompt_that_is_too_long_has_a_code_of_its_own(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            _, trailing, text = await refused(client.generate(chat("x" * 5000)))
            assert trailing["appliance-code"] == "context_length_exceeded"
            assert "512" in text

    run(scenario())


def test_an_unknown_model_is_not_found(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            for call in (
                client.generate(chat("x", model="nobody")),
                client.engine.Embed(pb.EmbedRequest(model="nobody")),
                client.engine.Tokenize(pb.TokenizeRequest(model="nobody")),
                client.engine.Load(pb.LoadRequest(model="nobody")),
                client.engine.Unload(pb.UnloadRequest(model="nobody")),
            ):
                code, trailing, _ = await refused(call)
                assert code is grpc.StatusCode.NOT_FOUND
                assert trailing["appliance-code"] == "model_not_found"

    run(scenario())


def test_a_full_queue_is_refused_as_exhausted(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node(max_sequences=1, max_waiting=1)
        async with node.run() as client:
            with node.slow():
                streams = [client.engine.Generate(chat("user", max_tokens=480)) for _ in range(2)]
                for stream in streams:
                    await stream.read()
                code, trailing, _ = await refused(client.generate(chat("user")))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert trailing["appliance-code"] == "queue_full"
            assert trailing["appliance-hint"]
            for stream in streams:
                stream.cancel()

    run(scenario())


def test_a_request_id_serves_one_call_at_a_time(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node()
        async with node.run() as client:
            request = chat("user", max_tokens=480)
            request.request_id = "same"
            with node.slow():
                stream = client.engine.Generate(request)
                await stream.read()
                code, _, _ = await refused(client.generate(request))
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            stream.cancel()

    run(scenario())


def test_a_refused_call_leaves_its_request_id_free(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            request = chat("user", max_tokens=2, temperature=-1.0)
            request.request_id = "again"
            await refused(client.generate(request))
            request.sampling.temperature = 0
            assert len(tokens(await client.generate(request))) == 2

    run(scenario())


def test_tools_are_shown_to_the_model(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            request = chat("weather?", max_tokens=1)
            request.chat.tools.add(name="f", description="d", parameters_json='{"type": "object"}')
            events = await client.generate(request)
            plain = await client.generate(chat("weather?", max_tokens=1))
            assert events[0].accepted.prompt_tokens > plain[0].accepted.prompt_tokens

    run(scenario())


def test_a_listed_model_says_what_it_can(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            listed = (await client.engine.ListModels(pb.ListModelsRequest())).models
            models = {model.name: model for model in listed}
            model = models["chat"]
            assert (model.kind, model.version, model.state) == (
                "chat",
                "1.0",
                pb.MODEL_STATE_SERVING,
            )
            assert model.provider == "CPUExecutionProvider"
            assert (model.context_length, model.max_sequences) == (512, 16)
            assert model.memory_bytes > 16 * 512 * 512
            assert model.supports_tools
            assert model.supports_thinking
            assert not model.supports_images
            assert model.created == 1_700_000_000
            assert models["words"].dimensions == 64
            assert models["words"].context_length == 64

    run(scenario())


SHAPE = '{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"]}'
CLOSED = SHAPE[:-1] + ',"additionalProperties":false}'


def answer(events: list[pb.GenerateEvent]) -> str:
    return "".join(event.delta.text for event in events)


def without_thinking(text: str, **sampling: Any) -> pb.GenerateRequest:
    """A random model never closes its reasoning."""
    request = chat(text, **({"temperature": 1.0, "seed": 1, "ignore_eos": False} | sampling))
    request.chat.thinking = pb.THINKING_MODE_OFF
    return request


def test_an_answer_has_the_form_that_is_asked_for(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            request = without_thinking("say")
            for form, pattern in (
                (pb.StructuredOutput(json_schema=CLOSED), r'\{\s*"ok"\s*:\s*(true|false)\s*\}'),
                (pb.StructuredOutput(regex="[ab]{3}"), "[ab]{3}"),
                (pb.StructuredOutput(lark='start: "x" /[0-9]/'), "x[0-9]"),
            ):
                request.structured.CopyFrom(form)
                events = await client.generate(request)
                assert re.fullmatch(pattern, answer(events))
                assert ends(events)[0].reason == pb.FINISH_REASON_STOP
                plain = pb.GenerateRequest(model="chat", text="a", structured=form)
                assert re.fullmatch(pattern, answer(await client.generate(plain)))

    run(scenario())


def test_tools_are_called_as_the_choice_says(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            request = without_thinking("call")
            request.chat.tools.add(name="f", parameters_json=CLOSED)
            request.chat.tools.add(name="g", parameters_json=CLOSED)
            request.chat.parallel_tool_calls = False
            request.chat.tool_choice = pb.TOOL_CHOICE_REQUIRED
            assert set(await called(client, request)) <= {"f", "g"}
            request.chat.tool_choice = pb.TOOL_CHOICE_NAMED
            request.chat.tool_choice_name = "g"
            assert await called(client, request) == ["g"]
            request.chat.tool_choice = pb.TOOL_CHOICE_NONE
            request.sampling.max_tokens = 9
            events = await client.generate(request)
            bare = without_thinking("call", max_tokens=9)
            assert tokens(events) == tokens(await client.generate(bare))

    run(scenario())


async def called(client: Client, request: pb.GenerateRequest) -> list[str]:
    """The name of each call that is made; the arguments are checked."""
    events = await client.generate(request)
    assert ends(events)[0].reason == pb.FINISH_REASON_TOOL_CALLS
    pieces = [call for event in events for call in event.delta.tool_calls]
    arguments = "".join(piece.arguments_json for piece in pieces)
    assert re.fullmatch(r'\{\s*"ok"\s*:\s*(true|false)\s*\}', arguments)
    return [piece.name for piece in pieces if piece.name]


def test_a_form_that_cannot_be_had_names_its_parameter(make_node: RunNode) -> None:
    forms = {
        "structured.json_schema.properties.a.not": pb.StructuredOutput(
            json_schema='{"properties": {"a": {"not": {}}}}'
        ),
        "structured.json_object": pb.StructuredOutput(json_object=False),
        "structured.regex": pb.StructuredOutput(regex="(a{1000}){1000}"),
        "structured.lark": pb.StructuredOutput(lark="start: ("),
    }

    async def scenario() -> None:
        async with make_node().run() as client:
            for param, form in forms.items():
                request = without_thinking("say")
                request.structured.CopyFrom(form)
                status, trailing, _ = await refused(client.generate(request))
                assert status is grpc.StatusCode.INVALID_ARGUMENT
                assert trailing["appliance-param"] == param
            request = without_thinking("say")
            request.chat.tool_choice = pb.TOOL_CHOICE_REQUIRED
            assert (await refused(client.generate(request)))[1]["appliance-param"] == "tool_choice"
            request.chat.tools.add(name="f", parameters_json='{"uniqueItems": true}', strict=True)
            for choice in (pb.TOOL_CHOICE_AUTO, pb.TOOL_CHOICE_REQUIRED):
                request.chat.tool_choice = choice
                _, trailing, _ = await refused(client.generate(request))
                assert trailing["appliance-param"] == "tools[0].function.parameters.uniqueItems"
            request.chat.tool_choice = pb.TOOL_CHOICE_NAMED
            request.chat.tool_choice_name = "g"
            assert (await refused(client.generate(request)))[1]["appliance-param"] == "tool_choice"
            request = without_thinking("say")
            request.structured.json_object = True
            request.chat.messages.add(role="assistant", content=[pb.ContentPart(text="{")])
            request.chat.continue_final_message = True
            _, trailing, _ = await refused(client.generate(request))
            assert trailing["appliance-param"] == "continue_final_message"

    run(scenario())


def test_an_owner_takes_its_slot_and_stats_tell_the_classes_apart(make_node: RunNode) -> None:
    async def scenario() -> None:
        node = make_node(max_sequences=2)
        async with node.run() as client:
            owned = chat("system", max_tokens=2)
            owned.share.owner, owned.share.percent = "o", 50
            with node.slow():
                streams = [client.engine.Generate(chat("user", max_tokens=200)) for _ in range(2)]
                for stream in streams:
                    await stream.read()
                    await stream.read()
                await client.generate(owned)
            stats = (await client.engine.Stats(pb.StatsRequest())).models[0]
            shared, dedicated = stats.classes
            assert (shared.name, dedicated.name) == ("shared", "dedicated")
            assert (shared.preemptions, dedicated.preemptions) == (1, 0)
            assert dedicated.generated_tokens == 2
            assert dedicated.sequences_running == dedicated.slots_reserved == 0
            assert stats.prompt_tokens == shared.prompt_tokens + dedicated.prompt_tokens
            for stream in streams:
                await rest(stream)

    run(scenario())


def test_a_share_without_owner_or_of_an_impossible_size_is_refused(make_node: RunNode) -> None:
    async def scenario() -> None:
        async with make_node().run() as client:
            wrong = ("", 5, "owner"), ("o", 0, "percent"), ("o", 76, "percent")
            for owner, percent, param in wrong:
                request = chat("user", max_tokens=1)
                request.share.owner, request.share.percent = owner, percent
                code, trailing, _ = await refused(client.generate(request))
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                assert trailing["appliance-param"] == f"share.{param}"

    run(scenario())
