"""The calls of a conversation, for templates that do not write them, or know them by other ids.

Some published templates show tools and results, and of a turn that called a tool only what it said
besides: LFM2's, SmolLM3's, Granite 3's. Their models read calls in what a turn says, as they wrote
them. GLM-4's reads turns of other kinds. Owns how such a template is found out, by letting it
render a call, and what it is given then. Kimi-K2 knows calls and results by ids of its own, which
name the function and count: its first template writes those of calls itself, later ones do not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from appliance.bundle.specs import ToolFormat
from appliance.prompting import granite, hermes, kimi, lfm2
from appliance.prompting.conversation import Conversation, Message, Tool, ToolCall
from appliance.prompting.python_arguments import python_literal

Turns = Sequence[Mapping[str, Any]]
"""Messages as templates read them."""
_MARK: Final = "XCALLX"
_ID: Final = "call00001"
_ARGUMENTS: Final = json.dumps({"word": _MARK})
TRIAL: Final = Conversation(
    (
        Message("user", "Hello."),
        Message("assistant", tool_calls=(ToolCall(_ID, "look", _ARGUMENTS),)),
        Message("tool", "1", tool_call_id=_ID),
    ),
    (Tool("look"),),
)
"""What is called with stands nowhere else."""


Retelling = Callable[[Turns], list[dict[str, Any]]]


def retelling(written: ToolFormat, tried: Callable[[], str | None]) -> Retelling | None:
    """How calls of a format must be told, for a template to show them; None: as they are.

    tried: what the template makes of TRIAL; None if it refuses it.
    """
    if written == "kimi_k2":
        return partial(renumbered, through=f"{kimi.CALL_BEGIN}{_ID}" in (tried() or ""))
    shows = written not in SPELLED or _MARK in (tried() or _MARK)
    return None if shows else partial(spelled, written=written)


def spelled(turns: Turns, written: ToolFormat) -> list[dict[str, Any]]:
    """`turns` for a template that writes no calls, in the format of its model."""
    if written == "glm4":
        return [turn for each in turns for turn in _glm4(each)]
    write = IN_CONTENT.get(written)
    return [_in_content(turn, write) if write else dict(turn) for turn in turns]


def renumbered(turns: Turns, *, through: bool) -> list[dict[str, Any]]:
    """`turns` with the ids that Kimi-K2 knows calls and results by.

    through: whether calls are counted through the conversation, or from 0 in each turn.
    """
    ids: dict[str, str] = {}
    done, before = [], 0
    for turn in turns:
        made = dict(turn)
        calls = [dict(call) for call in turn.get("tool_calls", ())]
        for index, call in enumerate(calls, start=before if through else 0):
            known, call["id"] = call["id"], kimi.call_id(call["function"]["name"], index)
            ids[known] = call["id"]
        if calls:
            made["tool_calls"] = calls
        if turn.get("tool_call_id") in ids:
            made["tool_call_id"] = ids[turn["tool_call_id"]]
        before += len(calls)
        done.append(made)
    return done


def _in_content(
    turn: Mapping[str, Any], write: Callable[[Iterable[Mapping[str, Any]]], str]
) -> dict[str, Any]:
    made = dict(turn)
    if made.get("tool_calls"):
        text = write([call["function"] for call in made.pop("tool_calls")])
        said = made["content"]
        part = {"type": "text", "text": text}
        made["content"] = said + text if isinstance(said, str) else [*said, part]
    return made


def _glm4(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A turn for each call, of which the name is what GLM calls metadata; results are observed."""
    if turn["role"] == "tool":
        return [{"role": "observation", "content": turn["content"]}]
    calls = turn.get("tool_calls", ())
    turns = [
        {
            "role": "assistant",
            "metadata": call["function"]["name"],
            "content": _json(call["function"]["arguments"]),
        }
        for call in calls
    ]
    said = {key: value for key, value in turn.items() if key != "tool_calls"}
    return [said, *turns] if said["content"] or not calls else turns


def _hermes(calls: Iterable[Mapping[str, Any]]) -> str:
    begin, end = hermes.TAGS
    return "\n".join(f"{begin}\n{_object(call)}\n{end}" for call in calls)


def _granite(calls: Iterable[Mapping[str, Any]]) -> str:
    return f"{granite.BEGIN}[{', '.join(map(_object, calls))}]"


def _python(calls: Iterable[Mapping[str, Any]]) -> str:
    written = []
    for call in calls:
        pairs = (f"{key}={python_literal(value)}" for key, value in call["arguments"].items())
        written.append(f"{call['name']}({', '.join(pairs)})")
    return f"[{', '.join(written)}]"


def _lfm2(calls: Iterable[Mapping[str, Any]]) -> str:
    return f"{lfm2.BEGIN}{_python(calls)}{lfm2.END}"


def _object(call: Mapping[str, Any]) -> str:
    return f'{{"name": {_json(call["name"])}, "arguments": {_json(call["arguments"])}}}'


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


IN_CONTENT: Final[Mapping[ToolFormat, Callable[[Iterable[Mapping[str, Any]]], str]]] = {
    "hermes": _hermes,
    "granite": _granite,
    "lfm2": _lfm2,
    "pythonic": _python,
}
"""Formats whose calls can stand in what a turn says."""
SPELLED: Final[frozenset[ToolFormat]] = frozenset({"glm4", *IN_CONTENT})
