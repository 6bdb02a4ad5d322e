"""What a Generate request asks of a model: the prompt in tokens, and the turn that follows it.

Owns the four ways of giving a prompt. What makes one blocks, on a template or on images, and runs
in a thread; a grammar is waited for on the event loop. Refuses what the model cannot do, naming the
parameter.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.grammar.constraint import CompiledGrammar
from appliance.engine.grammar.turn import Turn
from appliance.engine.guessing.drafting import Prediction
from appliance.engine.sampling import SamplingParams
from appliance.engine.vision.eyes import Shown
from appliance.engine.vision.sight import Sight
from appliance.engine_daemon import wire
from appliance.engine_daemon.faults import ServicerContext
from appliance.engine_daemon.turns import turn
from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.prompting import Conversation


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of any kind, encoded.

    Attributes:
        ids: its tokens, those of images included.
        param: what a refusal names.
        conversation: what a chat's prompt was made of.
        opened: it ends with the opening tag of reasoning.
        shown: its images, decoded.
    """

    ids: list[int]
    param: str = "prompt"
    conversation: Conversation | None = None
    opened: bool = False
    shown: Shown | None = None


def generation_of(
    model: ChatModel,
    call: int,
    request: pb.GenerateRequest,
    deadline: float | None,
    gone: Callable[[], bool],
) -> tuple[Generation, Turn]:
    """What the request asks of the engine as its call number `call`. Blocks.

    gone: whether nobody waits for it any more. Raises RequestError, CapacityError.
    """
    params = _params(model, request)
    prompt = _encode(model, request)
    chat = prompt.conversation
    asked = turn(
        request,
        model.prompting,
        thinking=chat is not None and chat.thinking,
        reasoning_opened=prompt.opened,
    )
    generation = Generation(
        call,
        prompt.ids,
        params,
        wire.sequence_count(request),
        chat=chat is not None,
        tools=asked.calls != "none",
        functions=() if chat is None else chat.tools,
        continued=request.chat.continue_final_message,
        reasoning_opened=prompt.opened,
        cache_namespace=request.cache_namespace,
        caller=request.caller,
        priority=request.priority,
        share=wire.share(request),
        deadline=deadline,
        prediction=_prediction(model, request),
        opening=_opening(model, request, prompt),
        sight=_sight(model, request, prompt, gone),
        prompt_param=prompt.param,
    )
    return generation, asked


async def held_to(asked: Turn, generation: Generation, model: ChatModel) -> Generation:
    """`generation` with the grammar of its turn. Raises RequestError, CapacityError."""
    compiled: CompiledGrammar = await asyncio.wrap_future(model.grammars.compiled(asked))
    return dataclasses.replace(
        generation,
        grammar=compiled,
        calls_first=asked.calls == "required" or asked.structured is not None,
        reasoning=asked.reasoning != "none",
    )


def deadline_of(request: pb.GenerateRequest, context: ServicerContext) -> float | None:
    """The earlier one of the request's and of the call's own, by the monotonic clock."""
    remaining: float | None = context.time_remaining()
    seconds = [] if remaining is None else [remaining]
    if request.deadline_ms:
        seconds.append(request.deadline_ms / 1000)
    return time.monotonic() + min(seconds) if seconds else None


def encode_chat(model: ChatModel, prompt: pb.ChatPrompt) -> Prompt:
    """Blocks on the template, and while images are decoded. Raises RequestError."""
    if prompt.tools and not model.prompting.tool_format:
        raise RequestError("this model cannot call tools", param="tools", hint="leave them out")
    conversation = wire.conversation(
        prompt, thinking=model.generation.thinking, sees=model.eyes is not None
    )
    if not conversation.thinking and model.prompting.reasoning is not msgspec.UNSET:
        raise RequestError(
            "this model always reasons before it answers",
            param="thinking",
            hint="leave the parameter out, or ask for little reasoning",
        )
    ids, opened = model.encode_chat(conversation)
    shown = model.show(ids, wire.images(prompt))
    return Prompt(ids if shown is None else shown.ids, "messages", conversation, opened, shown)


def _encode(model: ChatModel, request: pb.GenerateRequest) -> Prompt:
    kind = request.WhichOneof("prompt")
    if kind == "chat":
        return encode_chat(model, request.chat)
    if kind == "text":
        return Prompt(model.tokenizer.encode_text(request.text))
    if kind == "tokens":
        return Prompt(list(request.tokens.ids))
    if kind == "fill_in":
        return Prompt(model.encode_fill_in(request.fill_in.prefix, request.fill_in.suffix))
    raise RequestError("there is no prompt", param="prompt")


def _params(model: ChatModel, request: pb.GenerateRequest) -> SamplingParams:
    """What was asked for; what is filled in ends with the gap's own tokens too."""
    params = wire.sampling_params(request.sampling, model.generation)
    if request.WhichOneof("prompt") != "fill_in" or request.sampling.ignore_eos:
        return params
    return dataclasses.replace(params, end_ids=params.end_ids | {*model.fill_in_ids})


def _prediction(model: ChatModel, request: pb.GenerateRequest) -> Prediction | None:
    if not request.prediction:
        return None
    return Prediction(model.tokenizer.encode_text(request.prediction))


def _opening(model: ChatModel, request: pb.GenerateRequest, prompt: Prompt) -> int:
    if prompt.conversation is None or not request.cache_namespace:
        return 0
    return model.opening(prompt.conversation, prompt.ids)


def _sight(
    model: ChatModel, request: pb.GenerateRequest, prompt: Prompt, gone: Callable[[], bool]
) -> Sight | None:
    """What the model sees of the prompt's images, if the context holds them at all."""
    if prompt.shown is None:
        return None
    assert model.eyes is not None
    model.engine.check_length(prompt.ids, prompt.param)
    return model.eyes.see(prompt.shown, gone, request.cache_namespace)
