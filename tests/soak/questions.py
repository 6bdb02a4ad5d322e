"""What is asked for which the right answer is known: greedy, in every API, whole or streamed.

Owns the questions and how what an answer says is read from it: texts, calls, ends and counts,
nothing that is new each time. Vectors are the same within `VECTOR_NEAR`: a batch pads them, which
moves the last bits of a float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.soak.ask import Answer, Caller

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
EMBEDDINGS = "/v1/embeddings"
STREAMED = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES})
VECTOR_NEAR = 1e-5
"""Of a component of a vector of length 1."""
_WORDS = (
    "How do I add another model?",
    "Which model is active now, and since when?",
    "Every request is written to the audit log.",
    "The sum of 17 and 25 is 42; the square of 12 is",
    "Müller déjà vu naïve",
    "Type the command, read what it prints, and follow the hint. What then?",
    "你好",
    "An operator plugs in the stick.",
)
_AT_ONCE = {"reasoning_effort": "none"}
_WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
_REPORT = {
    "type": "object",
    "properties": {
        "state": {"enum": ["good", "bad", "unknown"]},
        "notes": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["state", "notes"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Question:
    """A request whose answer is always the same."""

    name: str
    path: str
    body: dict[str, Any]

    def ask(self, caller: Caller, *, stream: bool, hang_up_after: int | None = None) -> Answer:
        body = self.body
        if stream:
            body = body | {"stream": True}
            if self.path in (CHAT, COMPLETIONS):
                body |= {"stream_options": {"include_usage": True}}
        return caller.ask("POST", self.path, body, hang_up_after=hang_up_after)


def _chat(text: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "chat", "messages": messages, "temperature": 0, **more}


def _tool(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "parameters": _WEATHER} | more}


def questions() -> list[Question]:
    """All of them; each name is there once."""
    made = []
    for number, text in enumerate(_WORDS):
        most = (6, 12, 24)[number % 3]
        made += [
            Question(f"chat {number}", CHAT, _chat(text, max_tokens=most)),
            Question(f"long {number}", CHAT, _chat(text * 3, max_tokens=40, ignore_eos=True)),
            Question(
                f"completion {number}",
                COMPLETIONS,
                {"model": "chat", "prompt": text, "max_tokens": most, "temperature": 0},
            ),
            Question(
                f"response {number}",
                RESPONSES,
                {"model": "chat", "input": text, "max_output_tokens": most, "temperature": 0}
                | {"store": number % 2 == 0},
            ),
            Question(f"message {number}", MESSAGES, _chat(text, max_tokens=most)),
            Question(f"vectors {number}", EMBEDDINGS, {"model": "letters", "input": [text, "a"]}),
        ]
    form = {"type": "json_schema", "json_schema": {"name": "report", "schema": _REPORT}}
    made += [
        Question("object", CHAT, _chat("say", max_tokens=48, response_format=form, **_AT_ONCE)),
        Question(
            "call",
            CHAT,
            _chat("Oslo", max_tokens=64, tool_choice="required", tools=[_tool(strict=True)])
            | _AT_ONCE,
        ),
        Question("offer", CHAT, _chat("Oslo", max_tokens=12, tools=[_tool()])),
        Question("three", CHAT, _chat("hello", max_tokens=8, n=3)),
        Question("chosen", CHAT, _chat("hello", max_tokens=8, seed=7) | {"temperature": 1.0}),
    ]
    return made


def said(answer: Answer) -> Any:
    """What a complete answer says, whole or streamed: the same for the same question."""
    if not isinstance(answer.content, list):
        return _READERS[answer.path](answer.content)
    return _STREAM_READERS[answer.path](answer.content)


def same(one: Any, other: Any) -> bool:
    """Whether two sayings are the same."""
    if isinstance(one, list) and one and isinstance(one[0], list):
        pairs = zip(one, other, strict=True)
        return all(_near(vector, beside) for vector, beside in pairs)
    return bool(one == other)


def counts(answer: Answer) -> tuple[int, int]:
    """Tokens of the prompt and of the answer, as the caller was told."""
    document = answer.content
    if isinstance(document, list):
        usages = [found for part in document if (found := _usage_of(part))]
        usage: dict[str, Any] = {}
        for each in usages:  # Anthropic's stream tells the two in two events
            usage |= each
    else:
        usage = _usage_of(document)
    prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    cached = usage.get("cache_read_input_tokens", 0)  # there not part of the input
    completion = usage.get("completion_tokens", usage.get("output_tokens", 0))
    return prompt + cached, completion


def _usage_of(document: Any) -> dict[str, Any]:
    for place in (document, document.get("response") or {}, document.get("message") or {}):
        if isinstance(place, dict) and place.get("usage"):
            return dict(place["usage"])
    return {}


def _near(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=0, abs_tol=VECTOR_NEAR) for a, b in zip(one, other, strict=True)
    )


def _calls(calls: Any) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls or []]


def _of_chat(document: Any) -> Any:
    return [
        (
            choice["message"]["content"] or "",
            choice["message"].get("reasoning_content") or "",
            _calls(choice["message"].get("tool_calls")),
            choice["finish_reason"],
        )
        for choice in document["choices"]
    ]


def _of_chat_stream(documents: list[Any]) -> Any:
    texts: dict[int, list[Any]] = {}
    for choice in (choice for document in documents for choice in document["choices"]):
        text = texts.setdefault(choice["index"], ["", "", {}, None])
        delta = choice["delta"]
        text[0] += delta.get("content") or ""
        text[1] += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls") or []:
            name, arguments = text[2].get(call["index"], ("", ""))
            function = call["function"]
            name += function.get("name") or ""
            text[2][call["index"]] = name, arguments + (function.get("arguments") or "")
        text[3] = choice["finish_reason"] or text[3]
    return [(t[0], t[1], list(t[2].values()), t[3]) for _, t in sorted(texts.items())]


def _of_completion(document: Any) -> Any:
    return [(choice["text"], choice["finish_reason"]) for choice in document["choices"]]


def _of_completion_stream(documents: list[Any]) -> Any:
    choices = [choice for document in documents for choice in document["choices"]]
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return [("".join(choice["text"] for choice in choices), ends[0])]


def _of_response(document: Any) -> Any:
    items = [
        (item["type"], [part["text"] for part in item.get("content") or []])
        for item in document["output"]
    ]
    return document["status"], items


def _of_response_stream(documents: list[Any]) -> Any:
    return _of_response(documents[-1]["response"])


def _of_message(document: Any) -> Any:
    blocks = [
        (block["type"], block.get("text", block.get("thinking"))) for block in document["content"]
    ]
    return blocks, document["stop_reason"]


def _of_message_stream(documents: list[Any]) -> Any:
    blocks: dict[int, tuple[str, str]] = {}
    reason = None
    for document in documents:
        if document["type"] == "content_block_start":
            blocks[document["index"]] = document["content_block"]["type"], ""
        elif document["type"] == "content_block_delta":
            kind, text = blocks[document["index"]]
            delta = document["delta"]
            blocks[document["index"]] = kind, text + delta.get("text", delta.get("thinking", ""))
        elif document["type"] == "message_delta":
            reason = document["delta"]["stop_reason"]
    return list(blocks.values()), reason


def _of_embedding(document: Any) -> Any:
    return [item["embedding"] for item in document["data"]]


_READERS = {
    CHAT: _of_chat,
    COMPLETIONS: _of_completion,
    RESPONSES: _of_response,
    MESSAGES: _of_message,
    EMBEDDINGS: _of_embedding,
}
_STREAM_READERS = {
    CHAT: _of_chat_stream,
    COMPLETIONS: _of_completion_stream,
    RESPONSES: _of_response_stream,
    MESSAGES: _of_message_stream,
}
