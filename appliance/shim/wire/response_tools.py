"""The tools of /v1/responses: as a caller gives them, and as functions that every model can call.

Owns two translations, there and back. A function of a namespace is called `NAMESPACE__NAME`; a
custom tool is a function with the one text `input`. Refuses tools that somebody else would have to
run, such as a search of the web, by their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.lark_text import LarkError, pattern_of
from appliance.shim.wire.messages import tool_to_engine
from appliance.shim.wire.structured import Name, TextFormat

MAX_TOOLS = 128
"""Those of namespaces counted one by one."""
INPUT = "input"
"""The only argument of a custom tool."""
_HOSTED = {
    "apply_patch": "give it as a function or a custom tool, and apply what it is called with",
    "code_interpreter": "there is nothing here that runs a model's programs",
    "computer": "there is nothing here that a model could operate",
    "computer_use_preview": "there is nothing here that a model could operate",
    "file_search": "no files are indexed here",
    "image_generation": "no model here makes images",
    "local_shell": "give the shell as a function, and run what it is called with",
    "mcp": "the appliance calls nobody: let your program do it, and give the tools as functions",
    "programmatic_tool_calling": "there is nothing here that runs a model's programs",
    "shell": "give the shell as a function, and run what it is called with",
    "tool_search": "give all tools at once",
    "web_search": "the appliance has no network: switch it off in your program",
    "web_search_preview": "the appliance has no network: switch it off in your program",
}


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


Callers = Annotated[list[Literal["direct"]], Meta(min_length=1)]
"""`direct` is what happens anyway."""


class FunctionTool(_Strict, frozen=True, tag_field="type", tag="function"):
    name: Name
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None
    """Absent is false, unlike in OpenAI's service: decision 0106."""
    output_schema: None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: Callers | None = None


class GrammarFormat(_Strict, frozen=True, tag_field="type", tag="grammar"):
    """A text that a grammar admits."""

    definition: Annotated[str, Meta(min_length=1)]
    syntax: Literal["regex", "lark"]


class CustomTool(_Strict, frozen=True, tag_field="type", tag="custom"):
    """A tool that is called with a text."""

    name: Name
    description: str | None = None
    format: TextFormat | GrammarFormat | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: Callers | None = None


class NamespaceTool(_Strict, frozen=True, kw_only=True, tag_field="type", tag="namespace"):
    """Tools that belong together."""

    name: Name
    description: str | None = None
    tools: Annotated[list[FunctionTool | CustomTool], Meta(min_length=1, max_length=MAX_TOOLS)]


Tool = FunctionTool | CustomTool | NamespaceTool


class ToolOut(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    name: str
    description: str | None
    parameters: dict[str, object] | None
    strict: bool


class CustomOut(msgspec.Struct, frozen=True, tag_field="type", tag="custom"):
    name: str
    description: str | None
    format: TextFormat | GrammarFormat


class NamespaceOut(msgspec.Struct, frozen=True, tag_field="type", tag="namespace"):
    name: str
    description: str | None
    tools: list[ToolOut | CustomOut]


AnyToolOut = ToolOut | CustomOut | NamespaceOut


@dataclass(frozen=True, slots=True)
class Callable:
    """One tool that can be called. `place` is where the caller wrote it."""

    tool: FunctionTool | CustomTool
    place: str
    namespace: str | UnsetType = UNSET
    about: str = ""
    """What is said of its namespace, for the first of it."""

    @property
    def called(self) -> str:
        """Its name for the model."""
        return called(self.tool.name, self.namespace)

    @property
    def custom(self) -> bool:
        return isinstance(self.tool, CustomTool)

    def place_of(self, inside: str) -> str:
        """Where the caller wrote what stands at `inside` of the arguments' schema."""
        if self.custom:
            return f"{self.place}.format.definition"
        return f"{self.place}.parameters{inside}"

    def to_engine(self) -> pb.Tool:
        """It as a function. Raises RequestError for a form that cannot be held to."""
        said = "\n\n".join(part for part in (self.about, self.tool.description) if part)
        if isinstance(self.tool, CustomTool):
            return tool_to_engine(
                self.called, said, _text_schema(self.tool, self.place), strict=True
            )
        return tool_to_engine(
            self.called, said, self.tool.parameters, strict=bool(self.tool.strict)
        )


def called(name: str, namespace: str | UnsetType | None) -> str:
    """What a model calls the tool `name` of `namespace`."""
    return f"{namespace}__{name}" if namespace else name


def callables(tools: Sequence[Tool]) -> list[Callable]:
    """`tools` one by one. Raises RequestError if there are too many, or two have one name."""
    found = list(_each(tools))
    if len(found) > MAX_TOOLS:
        raise RequestError(
            f"there are {len(found)} tools, and at most {MAX_TOOLS} are taken",
            param="tools",
            code="invalid_value",
        )
    places: dict[str, str] = {}
    for one in found:
        first = places.setdefault(one.called, one.place)
        if first != one.place and (one.namespace or one.custom):
            raise RequestError(
                f"`{one.place}` and `{first}` are both called {one.called}",
                param=f"{one.place}.name",
                code="invalid_value",
            )
    return found


def shown(tool: Tool) -> AnyToolOut:
    """`tool` as a response says it."""
    if isinstance(tool, NamespaceTool):
        return NamespaceOut(tool.name, tool.description, [_shown(one) for one in tool.tools])
    return _shown(tool)


def refuse_hosted(body: object) -> None:
    """Raise RequestError for a tool in `body` that this appliance would have to run itself."""
    tools = body.get("tools") if isinstance(body, dict) else None
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        why = next((_HOSTED[name] for name in _HOSTED if _is(kind, name)), None)
        if why is not None:
            raise RequestError(
                f"there is no tool of type {kind!r} here: {why}",
                param=f"tools[{index}].type",
                code="unsupported_parameter",
            )


def _is(kind: object, name: str) -> bool:
    """Whether `kind` is `name`, or a version of it such as web_search_2025_08_26."""
    return isinstance(kind, str) and (kind == name or kind.startswith(f"{name}_20"))


def _each(tools: Sequence[Tool]) -> Iterator[Callable]:
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        if not isinstance(tool, NamespaceTool):
            yield Callable(tool, place)
            continue
        for number, one in enumerate(tool.tools):
            about = (tool.description or "") if number == 0 else ""
            yield Callable(one, f"{place}.tools[{number}]", tool.name, about)


def _text_schema(tool: CustomTool, place: str) -> dict[str, object]:
    text: dict[str, object] = {"type": "string", "description": "All that the tool is called with"}
    if isinstance(tool.format, GrammarFormat):
        form = f"{tool.format.syntax}: {tool.format.definition}"
        text["description"] = f"All that the tool is called with, in the form of this {form}"
        text["pattern"] = f"^(?:{_pattern(tool.format, f'{place}.format.definition')})$"
    return {
        "type": "object",
        "properties": {INPUT: text},
        "required": [INPUT],
        "additionalProperties": False,
    }


def _pattern(form: GrammarFormat, place: str) -> str:
    if form.syntax == "regex":
        return form.definition
    try:
        return pattern_of(form.definition)
    except LarkError as error:
        raise RequestError(
            f"this grammar cannot be held to: {error}",
            param=place,
            hint="leave `format` out, and check the text yourself",
            code="unsupported_parameter",
        ) from None


def _shown(tool: FunctionTool | CustomTool) -> ToolOut | CustomOut:
    if isinstance(tool, CustomTool):
        return CustomOut(tool.name, tool.description, tool.format or TextFormat())
    return ToolOut(tool.name, tool.description, tool.parameters, strict=bool(tool.strict))
