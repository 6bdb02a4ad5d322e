"""`tool_choice` and `output_config` of Anthropic's API, and what they are in the engine's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.anthropic_thinking import Effort
from appliance.shim.wire.chosen import Chosen, forced, free, named
from appliance.shim.wire.structured import schema_form


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class _Choice(_Strict, frozen=True, tag_field="type"):
    disable_parallel_tool_use: bool | None = None


class AutoChoice(_Choice, frozen=True, tag="auto"):
    """The model calls or answers."""


class NoChoice(_Choice, frozen=True, tag="none"):
    """The model sees no tools."""


class AnyChoice(_Choice, frozen=True, tag="any"):
    """The model calls."""


class OneChoice(_Choice, frozen=True, kw_only=True, tag="tool"):
    """The model calls this one."""

    name: str


Choice = AutoChoice | NoChoice | AnyChoice | OneChoice


class SchemaOutput(_Strict, frozen=True):
    """JSON that a schema admits."""

    type: Literal["json_schema"]
    schema: dict[str, object]


class OutputConfig(_Strict, frozen=True):
    format: SchemaOutput | None = None
    effort: Effort | None = None

    def form(self) -> pb.StructuredOutput | None:
        """What the answer is held to, in the engine's words. Raises RequestError."""
        return schema_form(self.format.schema) if self.format is not None else None


def choose(choice: Choice | None, tools: Sequence[pb.Tool]) -> Chosen:
    """The `choice` among `tools`. Raises RequestError if one is not there."""
    match choice:
        case None | AutoChoice():
            return free(tools)
        case NoChoice():
            return Chosen()
        case AnyChoice():
            return forced(tools, "tool_choice")
        case OneChoice():
            return named(tools, choice.name, "tool_choice.name")


def parallel(choice: Choice | None) -> bool | None:
    """False: one call at most. Several are this API's default, and never a demand."""
    return False if choice is not None and choice.disable_parallel_tool_use else None
