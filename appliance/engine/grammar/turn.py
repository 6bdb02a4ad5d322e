"""What a model's turn may look like, as a grammar in llguidance's dialect of Lark.

    reasoning, if the model thinks    then    the answer, calls in the bundle's own format, or both

Owns the composition. Control tags are written as tokens where the tokenizer has them as tokens,
so that no text can imitate one; where it spells them, a lazy rule ends at the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from appliance.bundle.specs import ToolFormat
from appliance.engine.grammar.forms import (
    ALL_TAGS,
    FORMS,
    PLAIN_NAME,
    SPLIT,
    Form,
)
from appliance.engine.grammar.pattern import PatternError, check_pattern, literal, slashes
from appliance.engine.grammar.schema import MAX_LITERAL, Schema, checked
from appliance.engine.grammar.tagged import CallableTool, tagged_arguments
from appliance.errors import RequestError
from appliance.prompting.formats import FORMATS
from appliance.prompting.pieces import first_tag

MAX_LARK_BYTES: Final = 64 * 1024
MAX_SCHEMA_CHARS: Final = 512 * 1024
"""Of all tools and the answer together."""
_LITERAL: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_GUIDANCE: Final = {
    # One line end with its indentation, or one blank: a model cannot lose itself in white space.
    "whitespace_pattern": r"(\n[ ]{0,32}|[ ])",
    # No \u: half of a surrogate pair would be a string that many readers refuse.
    "json_allowed_escapes": 'nrbtf\\"',
}


@dataclass(frozen=True, slots=True)
class Structured:
    """The form of the answer. `text`: the schema, the regex or the grammar."""

    kind: Literal["json_schema", "json_object", "regex", "lark"]
    text: str = ""

    @property
    def param(self) -> str:
        return f"structured.{self.kind}"


@dataclass(frozen=True, slots=True)
class Turn:
    """All that is asked of one turn. Equal turns have one compiled grammar.

    calls: whether functions may be called, must be, or neither.
    parallel: whether there may be more than one call.
    reasoning: whether the model reasons first: no; yes, and its prompt already opened the tag;
        yes, and it has to open the tag itself.
    """

    structured: Structured | None = None
    tools: tuple[CallableTool, ...] = ()
    calls: Literal["none", "optional", "required"] = "none"
    parallel: bool = True
    reasoning: Literal["none", "opened", "unopened"] = "none"

    @property
    def constrains(self) -> bool:
        """Whether anything is asked that a model does not do by itself."""
        strict = any(tool.strict for tool in self.tools)
        return (
            self.structured is not None
            or self.calls == "required"
            or (self.calls == "optional" and (strict or not self.parallel))
        )


@dataclass(frozen=True, slots=True)
class Tags:
    """The bundle's tags: of reasoning, and its format of calls."""

    reasoning_start: str = ""
    reasoning_end: str = ""
    tool_format: ToolFormat = ""


class Vocabulary(Protocol):
    """Knows tokens that text cannot spell."""

    def token(self, text: str) -> int | None:
        """The id of the token `text`, if it is one that no other tokens can spell."""

    def named_in(self, text: str) -> bool:
        """Whether the text of such a token occurs in `text`, which is JSON."""


@dataclass(frozen=True, slots=True)
class Part:
    """A schema inside a grammar, and where the caller wrote it."""

    param: str
    schema: Schema


@dataclass(frozen=True, slots=True)
class Grammar:
    """`text`: llguidance's JSON form of several grammars; `parts`: its schemas.

    param: what the caller asked for first, for errors that no part explains.
    """

    text: str
    parts: tuple[Part, ...]
    param: str


def grammar(turn: Turn, tags: Tags, vocabulary: Vocabulary) -> Grammar:
    """The grammar of `turn`. Raises RequestError naming what cannot be honoured."""
    assert turn.constrains
    return _Composer(turn, tags, vocabulary).whole()


def schema_grammar(schema: Schema) -> str:
    """The grammar of one schema alone."""
    return json.dumps({"grammars": [{"json_schema": _guided(schema)}]})


class _Composer:
    def __init__(self, turn: Turn, tags: Tags, vocabulary: Vocabulary) -> None:
        self._turn = turn
        self._tags = tags
        self._vocabulary = vocabulary
        self._rules: list[str] = []
        self._subgrammars: list[dict[str, object]] = []
        self._parts: list[Part] = []
        self._chars = 0

    def whole(self) -> Grammar:
        turn, body = self._turn, ""
        form = FORMS.get(self._tags.tool_format)
        final = "" if form is None else form.final
        if turn.structured is not None and turn.calls != "required":
            body = self._body(turn.structured)
            if final:
                body = f"{self.written(final)} {body}"
        calls = "" if turn.calls == "none" else self._calls()
        answer = " | ".join(option for option in (calls, body) if option)
        ahead = "" if turn.reasoning == "none" else self._reasoning()
        if form is not None and final:
            ahead = self._analysis(form.another)
        rules = [f"start: {ahead} answer", f"answer: {answer}", *self._rules]
        written = [self._subgrammars, "" if turn.structured is None else turn.structured.text]
        if self._vocabulary.named_in(json.dumps(written)):
            # Text that must come next is encoded as one, and a name such as "<tool_call>" would
            # become that token; so the tokens for it are left open.
            rules.insert(0, '%llguidance {"no_forcing": true}')
        grammars = [{"lark_grammar": "\n".join(rules)}, *self._subgrammars]
        param = "tools" if turn.structured is None else turn.structured.param
        return Grammar(json.dumps({"grammars": grammars}), tuple(self._parts), param)

    def _body(self, wanted: Structured) -> str:
        match wanted.kind:
            case "json_object":
                return self.json("body", {"type": "object"}, wanted.param)
            case "json_schema":
                return self.json("body", self._checked(wanted.text, wanted.param), wanted.param)
            case "regex":
                try:
                    check_pattern(wanted.text)
                except PatternError as error:
                    message = f"this regex cannot be enforced: {error}"
                    raise RequestError(message, param=wanted.param) from None
                self._rules.append(f"BODY: /{slashes(wanted.text)}/")
                return "BODY"
            case "lark":
                if len(wanted.text.encode()) > MAX_LARK_BYTES:
                    raise RequestError(
                        f"the grammar has more than {MAX_LARK_BYTES} bytes", param=wanted.param
                    )
                if any(len(found[0]) > MAX_LITERAL for found in _LITERAL.finditer(wanted.text)):
                    raise RequestError(
                        f"a literal of the grammar has more than {MAX_LITERAL} characters",
                        param=wanted.param,
                    )
                self._subgrammars.append({"name": "body", "lark_grammar": wanted.text})
                return "@body"

    def _calls(self) -> str:
        """The rules of calls in the bundle's format; what stands for all of them."""
        turn, form = self._turn, FORMS[self._tags.tool_format]
        options = [self._call(tool, form) for tool in turn.tools]
        self._rules.append(f"call: {' | '.join(options)}")
        again = ""
        if turn.parallel and form.between is not None:
            again = f"({self.written(form.between)} call)*"
        rest = f"{self.written(form.first)} call {again} {self.written(form.last)}"
        self._rules.append(f"call_rest: {rest}")
        if turn.calls == "required" or turn.structured is not None:
            if not form.begin and turn.calls == "optional":
                raise RequestError(
                    "this model's calls cannot be told from an answer in this form",
                    param="tools" if turn.structured is None else turn.structured.param,
                    hint="leave out the tools or the form, or require a call",
                    code="unsupported_parameter",
                )
            self._rules.append(f"calls: {self.written(form.begin)} call_rest")
            return "calls"
        if form.plain:
            self._rules.append(f"PLAIN: {form.plain}")
            return f"{self.written(form.begin)} call_rest | {self.written(form.lead)} PLAIN"
        return " | ".join([*self._text_until(form.begin, "call_rest"), self._free_text(form.begin)])

    def _call(self, tool: CallableTool, form: Form) -> str:
        """The rule of a call of `tool`; its name."""
        name, values = f"call_{tool.index}", {"NAME": json.dumps(tool.name), "PLAIN": tool.name}
        if "PLAIN" in form.call and not PLAIN_NAME.fullmatch(tool.name):
            raise RequestError(
                f"this model's calls cannot be held to a function named {tool.name!r}",
                param=f"tools[{tool.index}].function.name",
                hint="use letters, digits, '_', '-' and '.'",
                code="unsupported_parameter",
            )
        param = f"tools[{tool.index}].function.parameters"
        schema: Schema = {"type": "object"}
        if tool.strict:
            schema = _object_only(self._checked(tool.parameters_json or "{}", param), param)
        if form.arguments is not None:
            values["ARGS"] = form.arguments(self, schema, param, tool)
        elif form.values is None:
            values["ARGS"] = self.json(f"arguments{tool.index}", schema, param)
        else:
            values["ARGS"] = tagged_arguments(self, form.values, schema, param, tool)
        self._rules.append(f"{name}: {self.written(form.call, values)}")
        return name

    def written(self, text: str, values: Mapping[str, str] = {}) -> str:
        """`text` as grammar: its tags as tokens where they are, and `values` for its words."""
        parts: list[str] = []
        for part in SPLIT.split(text):
            if part == "ARGS":
                parts.append(values[part])
            elif part == "ID":
                parts.append("/[A-Za-z0-9]{9}/")
            elif part == "COUNT":
                parts.append("/0|[1-9][0-9]{0,3}/")
            elif part in ("NAME", "PLAIN"):
                parts.append(json.dumps(values[part]))
            elif part:
                parts.append(self._tag(part) if part in ALL_TAGS else json.dumps(part))
        return " ".join(parts)

    def _analysis(self, another: str) -> str:
        """A message of reasoning, if any, up to the header of `another` one."""
        start, end = self._tags.reasoning_start, self._tags.reasoning_end
        (option,) = self._text_until(end, self.written(another))
        self._rules.append(f"analysis: {self.written(start)} {option}")
        return "analysis?"

    def _reasoning(self) -> str:
        start, end = self._tags.reasoning_start, self._tags.reasoning_end
        # Some models, such as GLM-4.5, begin their turns with a line end.
        opening = ""
        if self._turn.reasoning == "unopened":
            token = self._vocabulary.token(start)
            opening = f"/\\n?/ {self.written(start) if token is None else self._tag(start)}"
        (option,) = self._text_until(end, "/[ \\n]{0,4}/")
        self._rules.append(f"reasoning: {opening} {option}")
        return "reasoning"

    def _text_until(self, tag: str, then: str) -> Iterator[str]:
        """Text without `tag`, then `tag`, then the rule or terminal `then`."""
        name = f"until_{len(self._rules)}"
        head, rest = self.cut(tag, FORMATS[self._tags.tool_format or "hermes"].tags)
        if rest:
            yield f"{self._free_text(tag, head)} {rest} {then}"
        else:
            self._rules.append(f"{name}[lazy]: /(?s:.*){literal(tag)}/")
            yield f"{name} {then}"

    def _free_text(self, tag: str, end: str = "") -> str:
        """The terminal for text without `tag`, with `end` at its end."""
        name = f"TEXT_{len(self._rules)}"
        text = f"/(?s:.*){literal(end)}/" if end else "/(?s:.*)/"
        self._rules.append(f"{name}: {text} & ~/(?s:.*){literal(tag)}(?s:.*)/")
        return name

    def _tag(self, text: str) -> str:
        token = self._vocabulary.token(text)
        return json.dumps(text) if token is None else f"<[{token}]>"

    def rule(self, text: str) -> None:
        """Add a rule."""
        self._rules.append(text)

    def marked(self, text: str, marks: Collection[str]) -> str:
        """`text` as grammar, in which `marks` are tokens where they are."""
        found = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
        parts = (self._tag(part) if part in marks else json.dumps(part) for part in found if part)
        return " ".join(parts)

    def cut(self, text: str, marks: Collection[str]) -> tuple[str, str]:
        """`text` before its first token, and the rest as grammar; that is empty if all is text."""
        if self._vocabulary.token(text) is not None:
            return "", self._tag(text)
        tokens = tuple(mark for mark in marks if self._vocabulary.token(mark) is not None)
        place, _ = first_tag(text, tokens)
        return (text, "") if place < 0 else (text[:place], self.marked(text[place:], tokens))

    def _checked(self, text: str, param: str) -> Schema:
        self._chars += len(text)
        if self._chars > MAX_SCHEMA_CHARS:
            raise RequestError(
                f"the schemas have more than {MAX_SCHEMA_CHARS} characters in all", param=param
            )
        return checked(text, param)

    def json(self, name: str, schema: Schema, param: str) -> str:
        """A JSON value of `schema`, as the rule `name`; what stands for it."""
        self._parts.append(Part(param, schema))
        self._subgrammars.append({"name": name, "json_schema": _guided(schema)})
        return f"@{name}"


def _guided(schema: Schema) -> dict[str, object]:
    whole = schema if isinstance(schema, dict) else {"allOf": [schema]}
    return {"x-guidance": _GUIDANCE, **whole}


def _object_only(schema: Schema, param: str) -> Schema:
    """`schema` for arguments, which are an object always. Raises RequestError."""
    if not isinstance(schema, dict):
        return {"type": "object"} if schema else False
    types = schema.get("type", "object")
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise RequestError("the parameters must be an object", param=f"{param}.type")
    return {**schema, "type": "object"}
