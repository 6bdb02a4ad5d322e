"""The items of /v1/responses: what a conversation is made of, going in and coming out.

Going in, an item may be one that came out earlier, sent back as it was. Refuses parts and items
that no model here understands (files, built-in tools) by their type.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire import images
from appliance.shim.wire.response_tools import INPUT, called

Status = Literal["in_progress", "completed", "incomplete"]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class InputText(_Strict, frozen=True, tag_field="type", tag="input_text"):
    text: str


class PlainText(_Strict, frozen=True, tag_field="type", tag="text"):
    """Open Responses' neutral kind."""

    text: str


class InputImage(_Strict, frozen=True, tag_field="type", tag="input_image"):
    """An image, for models that read them."""

    image_url: str | None = None
    file_id: str | None = None
    detail: images.Detail | None = None


class GivenOutputText(_Strict, frozen=True, tag_field="type", tag="output_text"):
    """Text of an earlier answer; what stands beside it is not read again."""

    text: str
    annotations: list[object] | None = None
    logprobs: list[object] | None = None


class GivenRefusal(_Strict, frozen=True, tag_field="type", tag="refusal"):
    refusal: str


Part = InputText | PlainText | InputImage | GivenOutputText | GivenRefusal
Parts = str | Annotated[list[Part], Meta(min_length=1)]


class GivenMessage(_Strict, frozen=True, tag_field="type", tag="message"):
    role: Literal["user", "system", "developer", "assistant"]
    content: Parts
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class _GivenCall(_Strict, frozen=True, tag_field="type"):
    call_id: str
    name: str
    namespace: str | None = None
    id: str | None = None
    status: Status | None = None


class GivenCall(_GivenCall, frozen=True, kw_only=True, tag="function_call"):
    arguments: str

    @property
    def arguments_json(self) -> str:
        """As the engine has them."""
        return self.arguments


class GivenCustomCall(_GivenCall, frozen=True, kw_only=True, tag="custom_tool_call"):
    input: str

    @property
    def arguments_json(self) -> str:
        """As the engine has them: the text is the only argument of a function."""
        return msgspec.json.encode({INPUT: self.input}).decode()


class _GivenOutput(_Strict, frozen=True, tag_field="type"):
    call_id: str
    output: str | Annotated[list[InputText | PlainText | InputImage], Meta(min_length=1)]
    id: str | None = None
    status: Status | None = None


class GivenCallOutput(_GivenOutput, frozen=True, tag="function_call_output"):
    """What a function gave."""


class GivenCustomOutput(_GivenOutput, frozen=True, tag="custom_tool_call_output"):
    """What a custom tool gave."""


class SummaryText(_Strict, frozen=True, tag_field="type", tag="summary_text"):
    text: str


class ReasoningText(_Strict, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class GivenReasoning(_Strict, frozen=True, tag_field="type", tag="reasoning"):
    """Earlier reasoning. It is never encrypted here, so there is nothing to decrypt."""

    id: str | None = None
    summary: list[SummaryText] = []
    content: list[ReasoningText] | None = None
    encrypted_content: None = None
    status: Status | None = None


Item = (
    GivenMessage
    | GivenCall
    | GivenCallOutput
    | GivenCustomCall
    | GivenCustomOutput
    | GivenReasoning
)


class ItemReference(_Strict, frozen=True, tag_field="type", tag="item_reference"):
    """An item of a stored response, which it names."""

    id: str


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class Logprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    logprobs: list[Logprob] = []
    annotations: list[object] = []


class OutputMessage(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    status: Status
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class OutputReasoning(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """The reasoning itself stands in `content`; nobody summarises it."""

    id: str
    status: Status
    content: list[ReasoningText]
    summary: list[SummaryText] = []


class OutputCall(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status
    namespace: str | UnsetType = UNSET


class OutputCustomCall(msgspec.Struct, frozen=True, tag_field="type", tag="custom_tool_call"):
    id: str
    call_id: str
    name: str
    input: str
    status: Status
    namespace: str | UnsetType = UNSET


OutputItem = OutputMessage | OutputReasoning | OutputCall | OutputCustomCall


def to_engine(items: Iterable[Item], *, earlier: int = 0) -> list[pb.ChatMessage]:
    """`items` as turns: an assistant's reasoning, text and calls that follow each other are one.

    The first `earlier` of them are of earlier responses. Raises RequestError for an image that
    cannot be one.
    """
    turns: list[pb.ChatMessage] = []
    open_turn: pb.ChatMessage | None = None
    for index, item in enumerate(items):
        at = f"input[{index - earlier}]"
        if not _is_assistant(item):
            turns.append(_turn(item, at))
            open_turn = None
            continue
        if open_turn is None or _begins_another(open_turn, item):
            open_turn = pb.ChatMessage(role="assistant")
            turns.append(open_turn)
        _add(open_turn, item, at)
    return turns


def listed(item: Item, fallback_id: str) -> dict[str, object]:
    """`item` as a list of items shows it: with an id, a status and parts instead of a string."""
    shown = {"id": item.id or fallback_id, "status": item.status or "completed"}
    if isinstance(item, GivenMessage):
        kind = "output_text" if item.role == "assistant" else "input_text"
        parts = [item.content] if isinstance(item.content, str) else item.content
        content = [_listed_part(part, kind) for part in parts]
        return {**shown, "type": "message", "role": item.role, "content": content}
    fields = {name: getattr(item, name) for name in item.__struct_fields__}
    fields.pop("encrypted_content", None)
    if fields.get("namespace", "") is None:
        del fields["namespace"]
    return {**fields, **shown, "type": item.__struct_config__.tag}


def _listed_part(part: str | Part, kind: str) -> dict[str, object]:
    if isinstance(part, GivenRefusal):
        return {"type": "refusal", "refusal": part.refusal}
    if isinstance(part, InputImage):
        detail = part.detail or "auto"
        return {"type": "input_image", "image_url": part.image_url, "detail": detail}
    text = part if isinstance(part, str) else part.text
    more: dict[str, object] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": text, **more}


def _is_assistant(item: Item) -> bool:
    if isinstance(item, GivenMessage):
        return item.role == "assistant"
    return isinstance(item, GivenCall | GivenCustomCall | GivenReasoning)


def _begins_another(turn: pb.ChatMessage, item: Item) -> bool:
    """Within a turn the order is reasoning, text, calls."""
    if isinstance(item, GivenReasoning):
        return bool(turn.content or turn.tool_calls or turn.reasoning)
    return isinstance(item, GivenMessage) and bool(turn.content or turn.tool_calls)


def _add(turn: pb.ChatMessage, item: Item, at: str) -> None:
    if isinstance(item, GivenReasoning):
        texts = item.content if item.content is not None else item.summary
        turn.reasoning = "".join(part.text for part in texts)
    elif isinstance(item, GivenCall | GivenCustomCall):
        name = called(item.name, item.namespace)
        turn.tool_calls.add(id=item.call_id, name=name, arguments_json=item.arguments_json)
    else:
        assert isinstance(item, GivenMessage)
        turn.content.extend(_parts(item.content, f"{at}.content"))


def _turn(item: Item, at: str) -> pb.ChatMessage:
    if isinstance(item, _GivenOutput):
        content = _parts(item.output, f"{at}.output")
        return pb.ChatMessage(role="tool", tool_call_id=item.call_id, content=content)
    assert isinstance(item, GivenMessage)
    role = "system" if item.role == "developer" else item.role
    return pb.ChatMessage(role=role, content=_parts(item.content, f"{at}.content"))


def _parts(content: str | Sequence[Part], at: str) -> list[pb.ContentPart]:
    if isinstance(content, str):
        return [pb.ContentPart(text=content)]
    return [_part(part, f"{at}[{index}]") for index, part in enumerate(content)]


def _part(part: Part, at: str) -> pb.ContentPart:
    if isinstance(part, GivenRefusal):
        return pb.ContentPart(text=part.refusal)
    if not isinstance(part, InputImage):
        return pb.ContentPart(text=part.text)
    if part.image_url is None:
        images.refuse_address(f"{at}.file_id" if part.file_id is not None else at)
    return images.from_url(
        part.image_url, part.detail, at=f"{at}.image_url", detail_at=f"{at}.detail"
    )
