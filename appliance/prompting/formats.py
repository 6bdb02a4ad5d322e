"""The formats of tool calls: which parser reads each, and which of its tags must reach it.

Many tags are special tokens, which a detokenizer leaves out of the text; a format's are kept in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from appliance.bundle.specs import ToolFormat
from appliance.prompting import (
    apertus,
    cohere,
    deepseek,
    gemma4,
    glm4,
    granite,
    harmony,
    hermes,
    kimi,
    lfm2,
    llama,
    llama4,
    minimax_m3,
    mistral,
    muse,
    pythonic,
)
from appliance.prompting.call_parser import CallParser
from appliance.prompting.conversation import Tool
from appliance.prompting.dsml import DSML, DSML_V4
from appliance.prompting.glm import GLM, GLM_47
from appliance.prompting.hy3 import HY3
from appliance.prompting.listed_calls import ListedCalls
from appliance.prompting.messages import Channels
from appliance.prompting.minimax import MINIMAX
from appliance.prompting.pythonic import PythonicCalls
from appliance.prompting.qwen_coder import QWEN_CODER
from appliance.prompting.sectioned_calls import Section, SectionedCalls
from appliance.prompting.seed_oss import SEED_OSS
from appliance.prompting.xml_call import Dialect, Types, XmlParser, parameter_types

NewId = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    Attributes:
        tags: texts that are part of the output, even where the vocabulary has them as special.
        first: the characters that an answer made of calls may begin with; empty: any.
        ends: tokens that end a turn, beside the model's own.
        hidden: tokens that frame an answer and are no part of the output, special or not.
        id_length: how long the ids of calls are, if the template refuses others; else 0.
        parser: makes the parser of one sequence.
    """

    tags: tuple[str, ...]
    first: str
    parser: Callable[[NewId, Iterable[Tool]], CallParser]
    ends: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    id_length: int = 0


def _types(tools: Iterable[Tool]) -> dict[str, Types]:
    return {tool.name: parameter_types(tool.parameters_json) for tool in tools}


def _xml(dialect: Dialect) -> Format:
    def parser(new_id: NewId, tools: Iterable[Tool]) -> CallParser:
        return XmlParser(new_id, dialect, _types(tools))

    return Format(dialect.tags, "<", parser)


def _nested(new_id: NewId, tools: Iterable[Tool]) -> CallParser:
    schemas = {tool.name: minimax_m3.schema_of(tool.parameters_json) for tool in tools}
    return minimax_m3.NestedCalls(new_id, schemas)


def _listed(
    tags: tuple[str, str],
    head: re.Pattern[str],
    ends: tuple[str, ...] = (),
    hidden: tuple[str, ...] = (),
) -> Format:
    def parser(new_id: NewId, _tools: Iterable[Tool]) -> CallParser:
        return ListedCalls(new_id, tags, head)

    return Format(tags, "<", parser, ends=ends, hidden=hidden)


def _sectioned(tags: tuple[str, ...], section: Section) -> Format:
    return Format(tags, "<", lambda new_id, _tools: SectionedCalls(new_id, section))


def _pythonic(new_id: NewId, tools: Iterable[Tool], *, tagged: bool) -> CallParser:
    names = {tool.name: tuple(parameter_types(tool.parameters_json)) for tool in tools}
    tags = lfm2.TAGS if tagged else pythonic.LLAMA
    return PythonicCalls(new_id, tags, names, at_start=not tagged)


_DEEPSEEK = _sectioned(deepseek.TAGS, deepseek.SECTION)
_MISTRAL = Format(
    mistral.TAGS, "[", lambda new_id, _tools: mistral.MistralParser(new_id), id_length=9
)
FORMATS: Final[Mapping[ToolFormat, Format]] = {
    "hermes": Format(hermes.TAGS, "<", lambda new_id, _tools: hermes.HermesParser(new_id)),
    "llama": Format(
        (llama.TAG,),
        "{<",
        lambda new_id, _tools: llama.LlamaParser(new_id),
        ends=("<|eot_id|>", "<|eom_id|>"),
    ),
    "llama4": Format(
        llama4.TAGS,
        "{<",
        lambda new_id, _tools: llama4.Llama4Parser(new_id),
        ends=("<|eot|>", "<|eom|>"),
    ),
    "deepseek": _DEEPSEEK,
    "deepseek_v31": _DEEPSEEK,
    "dsml": _xml(DSML),
    "dsml_v4": _xml(DSML_V4),
    "minimax": _xml(MINIMAX),
    "minimax_m3": Format(minimax_m3.TAGS, "]", _nested),
    "qwen_coder": _xml(QWEN_CODER),
    "glm": _xml(GLM),
    "glm_v47": _xml(GLM_47),
    "hy3": _xml(HY3),
    "mistral": _MISTRAL,
    "mistral_v11": _MISTRAL,
    "mistral_v13": _MISTRAL,
    "harmony": Format(
        harmony.TAGS,
        "<",
        lambda new_id, _tools: harmony.HarmonyParser(new_id),
        ends=(harmony.RETURN, harmony.CALL),
    ),
    "apertus": _listed((apertus.BEGIN, apertus.END), apertus.HEAD, ends=(apertus.END,)),
    "cohere": _listed((cohere.BEGIN, cohere.END), cohere.HEAD, hidden=cohere.FRAME),
    "seed_oss": _xml(SEED_OSS),
    "gemma4": Format(
        gemma4.TAGS,
        "<",
        lambda new_id, _tools: gemma4.Gemma4Parser(new_id),
        ends=(gemma4.TURN_END, gemma4.RESPONSE),
    ),
    "kimi_k2": _sectioned(kimi.TAGS, kimi.SECTION),
    "lfm2": Format(lfm2.TAGS, "<", partial(_pythonic, tagged=True)),
    "pythonic": Format(
        pythonic.LLAMA,
        "[<",
        partial(_pythonic, tagged=False),
        ends=("<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>"),
    ),
    "granite": Format(
        (granite.BEGIN,),
        "<",
        lambda new_id, _tools: mistral.MistralParser(new_id, granite.BEGIN),
    ),
    "glm4": Format(
        glm4.TAGS,
        "",
        lambda new_id, tools: glm4.Glm4Parser(new_id, (tool.name for tool in tools)),
        ends=(glm4.OBSERVATION, glm4.USER),
    ),
    "muse": Format(
        muse.TAGS,
        "",
        lambda new_id, tools: muse.MuseParser(new_id, _types(tools)),
        ends=(muse.EOT,),
    ),
}


def channels(
    tool_format: ToolFormat,
    new_id: NewId,
    functions: Iterable[Tool],
    *,
    tools: bool,
    continued: bool,
) -> Channels | None:
    """The parser of turns that are messages; None of a format whose turns are not.

    tools: whether calls are looked for; continued: the prompt ends inside of an answer.
    """
    if tool_format == "harmony":
        return harmony.HarmonyParser(new_id, tools=tools, continued=continued)
    if tool_format == "muse":
        return muse.MuseParser(new_id, _types(functions), tools=tools, continued=continued)
    return None


def visible_tags(tool_format: ToolFormat) -> tuple[str, ...]:
    """The tags of a format; Hermes's where there is none, as ever."""
    return FORMATS[tool_format or "hermes"].tags


def hidden_tags(tool_format: ToolFormat) -> tuple[str, ...]:
    """The tags that frame answers in a format."""
    return FORMATS[tool_format].hidden if tool_format else ()
