"""protobuf <-> engine types, both ways, one function a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from appliance.bundle.specs import Generation
from appliance.engine.choosing import TokenLogprob
from appliance.engine.output import Delta, Finished, FinishReason
from appliance.engine.sampling import MAX_SEQUENCES, SamplingParams
from appliance.engine.tokenizer import Tokenizer
from appliance.engine.vision.decoder import Image
from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.prompting import Conversation, Message, Tool, ToolCall, ToolCallPiece
from appliance.scheduler import MOST_RESERVED, Share

_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.DEADLINE: pb.FINISH_REASON_DEADLINE,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
}
_EFFORTS: Mapping[pb.ThinkingMode, Literal["low", "medium", "high"]] = {
    pb.THINKING_MODE_LOW: "low",
    pb.THINKING_MODE_MEDIUM: "medium",
    pb.THINKING_MODE_HIGH: "high",
}


def sequence_count(request: pb.GenerateRequest) -> int:
    """How many sequences are asked for. Raises RequestError."""
    if request.n > MAX_SEQUENCES:
        raise RequestError(f"n must be at most {MAX_SEQUENCES}", param="n")
    return request.n or 1


def share(request: pb.GenerateRequest) -> Share | None:
    """What is kept for the caller. Raises RequestError."""
    if not request.HasField("share"):
        return None
    owner, percent = request.share.owner, request.share.percent
    if not owner:
        raise RequestError("a share has an owner", param="share.owner")
    if not 1 <= percent <= MOST_RESERVED:
        raise RequestError(
            f"a share has 1 to {MOST_RESERVED} percent, not {percent}", param="share.percent"
        )
    return Share(owner, percent)


def sampling_params(given: pb.SamplingParams, defaults: Generation) -> SamplingParams:
    """The caller's parameters; the bundle's where the caller is silent. Not checked yet."""

    def choose(name: str, default: float) -> float:
        value: float = getattr(given, name)
        return value if given.HasField(name) else default

    ends = frozenset(given.stop_token_ids)
    if not given.ignore_eos:
        ends |= frozenset(defaults.eos_token_ids)
    return SamplingParams(
        max_tokens=given.max_tokens or None,
        min_tokens=given.min_tokens,
        temperature=choose("temperature", defaults.temperature),
        top_p=choose("top_p", defaults.top_p),
        top_k=given.top_k if given.HasField("top_k") else defaults.top_k,
        min_p=choose("min_p", defaults.min_p),
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        repetition_penalty=choose("repetition_penalty", defaults.repetition_penalty),
        seed=given.seed if given.HasField("seed") else None,
        stop=tuple(given.stop),
        end_ids=ends,
        logit_bias=dict(given.logit_bias),
        logprobs=given.logprobs if given.HasField("logprobs") else None,
    )


def conversation(prompt: pb.ChatPrompt, *, thinking: bool, sees: bool = False) -> Conversation:
    """A chat prompt; `thinking` is the bundle's default, `sees`: the model reads images.

    Raises RequestError.
    """
    if not sees:
        _refuse_images(prompt)
    for name, kind in (("tool_choice", pb.ToolChoice), ("thinking", pb.ThinkingMode)):
        if getattr(prompt, name) not in kind.values():
            raise RequestError(f"{getattr(prompt, name)} is no {name}", param=name)
    if prompt.thinking != pb.THINKING_MODE_DEFAULT:
        thinking = prompt.thinking != pb.THINKING_MODE_OFF
    return Conversation(
        tuple(_message(message) for message in prompt.messages),
        _tools(prompt),
        thinking=thinking,
        effort=_EFFORTS.get(prompt.thinking, ""),
        continue_final=prompt.continue_final_message,
    )


def _tools(prompt: pb.ChatPrompt) -> tuple[Tool, ...]:
    if prompt.tool_choice == pb.TOOL_CHOICE_NONE:
        return ()
    return tuple(Tool(t.name, t.description, t.parameters_json) for t in prompt.tools)


def generate_event(events: Sequence[Delta | Finished], tokenizer: Tokenizer) -> pb.GenerateEvent:
    """`events`, at least one, in one message."""
    first, *further = events
    shown = _event(first, tokenizer)
    shown.further.extend(_event(event, tokenizer) for event in further)
    return shown


def _event(event: Delta | Finished, tokenizer: Tokenizer) -> pb.GenerateEvent:
    if isinstance(event, Finished):
        return _finished_event(event)
    return _delta_event(event, tokenizer)


def _delta_event(delta: Delta, tokenizer: Tokenizer) -> pb.GenerateEvent:
    return pb.GenerateEvent(
        delta=pb.Delta(
            index=delta.index,
            text=delta.text,
            reasoning=delta.reasoning,
            tool_calls=[_tool_call(piece) for piece in delta.tool_calls],
            logprobs=[_logprob(logprob, tokenizer) for logprob in delta.logprobs],
            tokens=delta.tokens,
            token_ids=delta.token_ids,
        )
    )


def _finished_event(finished: Finished) -> pb.GenerateEvent:
    return pb.GenerateEvent(
        finished=pb.Finished(
            index=finished.index,
            reason=_REASONS[finished.reason],
            usage=usage(finished),
            stop=finished.stop,
        )
    )


def usage(finished: Finished) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=finished.prompt_tokens,
        cached_tokens=finished.cached_tokens,
        generated_tokens=finished.generated_tokens,
        reasoning_tokens=finished.reasoning_tokens,
        accepted_prediction_tokens=finished.accepted_prediction_tokens,
        rejected_prediction_tokens=finished.rejected_prediction_tokens,
    )


def images(prompt: pb.ChatPrompt) -> list[tuple[str, Image]]:
    """The images of a chat prompt in their order, each with the parameter that it came as."""
    return [
        (f"messages[{index}].content[{at}]", Image(part.image.media_type, part.image.data))
        for index, message in enumerate(prompt.messages)
        for at, part in enumerate(message.content)
        if part.WhichOneof("part") == "image"
    ]


def _refuse_images(prompt: pb.ChatPrompt) -> None:
    for param, _ in images(prompt):
        raise RequestError(
            "could not process image: this model reads text only",
            param=param,
            hint="leave the image out, or ask a model that reads images",
        )


def _message(message: pb.ChatMessage) -> Message:
    shown = any(part.WhichOneof("part") == "image" for part in message.content)
    parts = (None if p.WhichOneof("part") == "image" else p.text for p in message.content)
    return Message(
        message.role,
        # Templates read one text; parts are lines of it, as other engines have it.
        "\n".join(part.text for part in message.content),
        message.name,
        message.reasoning,
        tuple(ToolCall(call.id, call.name, call.arguments_json) for call in message.tool_calls),
        message.tool_call_id,
        tuple(parts) if shown else (),
    )


def _tool_call(piece: ToolCallPiece) -> pb.ToolCallDelta:
    return pb.ToolCallDelta(
        index=piece.index, id=piece.id, name=piece.name, arguments_json=piece.arguments_json
    )


def _logprob(logprob: TokenLogprob, tokenizer: Tokenizer) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=logprob.token_id,
        token=tokenizer.token_bytes(logprob.token_id),
        logprob=logprob.logprob,
        top=[
            pb.TopLogprob(token_id=i, token=tokenizer.token_bytes(i), logprob=value)
            for i, value in logprob.top
        ],
    )
