"""Which tools the model may call, and whether it must: what the choices of every API come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.prompt import FREE_CHOICE


@dataclass(frozen=True, slots=True)
class Chosen:
    """The tools that reach the model, and the engine's choice among them."""

    tools: Sequence[pb.Tool] = ()
    choice: tuple[pb.ToolChoice, str] = (pb.TOOL_CHOICE_NONE, "")


def free(tools: Sequence[pb.Tool]) -> Chosen:
    """The model calls or answers."""
    return Chosen(tools, FREE_CHOICE)


def forced(tools: Sequence[pb.Tool], param: str) -> Chosen:
    """The model calls. Raises RequestError about `param` if there is nothing to call."""
    _find("tools", bool(tools), param)
    return Chosen(tools, (pb.TOOL_CHOICE_REQUIRED, ""))


def named(tools: Sequence[pb.Tool], name: str, param: str) -> Chosen:
    """The model calls this one. Raises RequestError about `param` if it is not there."""
    _find(name, any(tool.name == name for tool in tools), param)
    return Chosen(tools, (pb.TOOL_CHOICE_NAMED, name))


def allowed(tools: Sequence[pb.Tool], names: Mapping[str, str], *, required: bool) -> Chosen:
    """Only some: `names` by the param that gave each. Raises RequestError about one not there."""
    known = {tool.name for tool in tools}
    for param, name in names.items():
        _find(name, name in known, param)
    wanted = set(names.values())
    choice = (pb.TOOL_CHOICE_REQUIRED, "") if required else FREE_CHOICE
    return Chosen([tool for tool in tools if tool.name in wanted], choice)


def places(given: Sequence[str], reached: Iterable[pb.Tool]) -> list[int]:
    """Where the tools that reached the model stand among the names `given`."""
    return [given.index(tool.name) for tool in reached]


def _find(wanted: str, found: bool, param: str) -> None:
    if not found:
        raise RequestError(
            f"`tool_choice` asks for {wanted}, which `tools` does not have",
            param=param,
            code="invalid_value",
        )
