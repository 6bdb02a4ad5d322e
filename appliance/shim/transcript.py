"""An answer as it was generated, for the audit log's content modes: what each choice said.

Owns its one form, JSON with one object a choice, in order. It is the text that left the engine
for the caller, whatever shape the API gave it and whether or not the caller read it to the end.
"""

from __future__ import annotations

import msgspec

from appliance.pb import engine_v1_pb2 as pb


class _Call(msgspec.Struct, omit_defaults=True):
    id: str = ""
    name: str = ""
    arguments: str = ""


class _Choice(msgspec.Struct, omit_defaults=True):
    text: str = ""
    reasoning: str = ""
    tool_calls: dict[int, _Call] = {}


class Transcript:
    """Tell it every delta."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}

    def add(self, choice: int, delta: pb.Delta) -> None:
        """`delta` belongs to the choice with that number."""
        said = self._choices.setdefault(choice, _Choice())
        said.text += delta.text
        said.reasoning += delta.reasoning
        for part in delta.tool_calls:
            call = said.tool_calls.setdefault(part.index, _Call())
            call.id += part.id
            call.name += part.name
            call.arguments += part.arguments_json

    def encoded(self) -> bytes:
        """JSON: a list of {text, reasoning, tool_calls}, empty fields left out."""
        return msgspec.json.encode(
            [
                {
                    "choice": number,
                    **msgspec.to_builtins(said),
                    **({"tool_calls": list(said.tool_calls.values())} if said.tool_calls else {}),
                }
                for number, said in sorted(self._choices.items())
            ]
        )
