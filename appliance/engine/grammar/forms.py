"""How calls are written in each format, as texts out of which a grammar is made.

In these texts NAME stands for the function's name in JSON, PLAIN for the bare name, ARGS for its
arguments, ID for an id of nine characters, COUNT for a number; tags are looked up in the
vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from appliance.bundle.specs import ToolFormat
from appliance.engine.grammar.bare import bare_arguments
from appliance.engine.grammar.pythonic import python_arguments
from appliance.engine.grammar.schema import Schema
from appliance.engine.grammar.tagged import CallableTool, Rules
from appliance.prompting import (
    apertus,
    cohere,
    deepseek,
    gemma4,
    glm4,
    granite,
    harmony,
    kimi,
    lfm2,
    llama,
    llama4,
    messages,
    mistral,
    muse,
    pythonic,
)
from appliance.prompting.dsml import DSML, DSML_V4
from appliance.prompting.formats import FORMATS
from appliance.prompting.glm import GLM, GLM_47
from appliance.prompting.hy3 import HY3
from appliance.prompting.hy3 import SEPARATOR as HY3_SEPARATOR
from appliance.prompting.minimax import MINIMAX
from appliance.prompting.minimax_m3 import M3
from appliance.prompting.qwen_coder import QWEN_CODER
from appliance.prompting.seed_oss import SEED_OSS
from appliance.prompting.xml_call import Dialect


@dataclass(frozen=True, slots=True)
class Form:
    """One format: `begin`, `first`, a call, any number of `between` and a call, `last`.

    Attributes:
        begin: the tag by which calls are told from text; empty if nothing tells them.
        between: None if a turn has one call at most.
        plain: where `begin` does not tell it: the terminal of an answer without calls, behind
            `lead`.
        final, another: where turns are messages: what opens that of the answer, and what begins
            the header of the next one.
        values: how arguments are written, if in tags of their own; all else is JSON.
        arguments: makes their rules, if they are neither.
    """

    call: str
    begin: str = ""
    first: str = ""
    between: str | None = None
    last: str = ""
    plain: str = ""
    lead: str = ""
    final: str = ""
    another: str = ""
    values: Dialect | None = None
    arguments: Callable[[Rules, Schema, str, CallableTool], str] | None = None


def _any_of(texts: tuple[str, ...]) -> str:
    return "|".join(map(re.escape, texts))


def _dsml(dialect: Dialect) -> Form:
    begin, last = dialect.block
    call = f'{dialect.call[0]}PLAIN">\nARGS{dialect.call[1]}\n'
    return Form(call, begin=begin, first="\n", between="", last=last, values=dialect)


_MISTRAL = mistral.BEGIN
_BLOCK = FORMATS["hermes"].tags
_ANOTHER = f"{messages.START}assistant"
_HARMONY_FINAL = f"{harmony.CHANNEL}final{messages.MESSAGE}"
FORMS: Final[Mapping[ToolFormat, Form]] = {
    "hermes": Form(
        f'\n{{"name": NAME, "arguments": ARGS}}\n{_BLOCK[1]}',
        begin=_BLOCK[0],
        between=f"\n{_BLOCK[0]}",
    ),
    "llama": Form(
        '{"name": NAME, "parameters": ARGS}',
        # An answer is no call if it does not begin like one.
        plain=rf"/(?s:\s*([^\s{{].*)?)/ & ~/(?s:\s*{re.escape(llama.TAG)}.*)/",
    ),
    "llama4": Form(
        '{"name": NAME, "parameters": ARGS}',
        between="",
        plain=rf"/(?s:\s*([^\s{{].*)?)/ & ~/(?s:.*({_any_of(llama4.TAGS)}).*)/",
    ),
    "deepseek": Form(
        f"{deepseek.CALL_BEGIN}function{deepseek.SEPARATOR}PLAIN\n```json\nARGS\n```"
        f"{deepseek.CALL_END}",
        begin=deepseek.CALLS_BEGIN,
        between="\n",
        last=deepseek.CALLS_END,
    ),
    "deepseek_v31": Form(
        f"{deepseek.CALL_BEGIN}PLAIN{deepseek.SEPARATOR}ARGS{deepseek.CALL_END}",
        begin=deepseek.CALLS_BEGIN,
        between="",
        last=deepseek.CALLS_END,
    ),
    "dsml": _dsml(DSML),
    "dsml_v4": _dsml(DSML_V4),
    "mistral": Form(
        '{"name": NAME, "arguments": ARGS}', begin=_MISTRAL, first="[", between=", ", last="]"
    ),
    "mistral_v11": Form("PLAIN[CALL_ID]ID[ARGS]ARGS", begin=_MISTRAL, between=_MISTRAL),
    "mistral_v13": Form("PLAIN[ARGS]ARGS", begin=_MISTRAL, between=_MISTRAL),
    "minimax": Form(
        '<invoke name="PLAIN">\nARGS</invoke>\n',
        begin=MINIMAX.block[0],
        first="\n",
        between="",
        last=MINIMAX.block[1],
        values=MINIMAX,
    ),
    "minimax_m3": Form(
        f'{M3.call[0]}PLAIN">ARGS{M3.call[1]}\n',
        begin=M3.block[0],
        first="\n",
        between="",
        last=M3.block[1],
        values=M3,
    ),
    "qwen_coder": Form(
        f"\n<function=PLAIN>\nARGS</function>\n{QWEN_CODER.block[1]}",
        begin=QWEN_CODER.block[0],
        between=f"\n{QWEN_CODER.block[0]}",
        values=QWEN_CODER,
    ),
    "glm": Form(
        f"PLAIN\nARGS{GLM.block[1]}",
        begin=GLM.block[0],
        between=f"\n{GLM.block[0]}",
        values=GLM,
    ),
    "glm_v47": Form(
        f"PLAINARGS{GLM_47.block[1]}",
        begin=GLM_47.block[0],
        between=GLM_47.block[0],
        values=GLM_47,
    ),
    "hy3": Form(
        f"{HY3.call[0]}PLAIN{HY3_SEPARATOR}\nARGS{HY3.call[1]}\n",
        begin=HY3.block[0],
        first="\n",
        between="",
        last=HY3.block[1],
        values=HY3,
    ),
    "harmony": Form(
        f" to=functions.PLAIN {harmony.CONSTRAIN}json{messages.MESSAGE}ARGS",
        begin=f"{harmony.CHANNEL}commentary",
        plain="/(?s:.*)/",
        lead=_HARMONY_FINAL,
        final=_HARMONY_FINAL,
        another=_ANOTHER,
    ),
    "muse": Form(
        f'PLAIN{messages.MESSAGE}{muse.MUSE.block[0]}\n<atem:invoke name="PLAIN">\nARGS'
        f"</atem:invoke>\n{muse.MUSE.block[1]}",
        begin=" to=",
        plain="/(?s:.*)/",
        lead=muse.ANSWER,
        final=muse.ANSWER,
        another=_ANOTHER,
        values=muse.MUSE,
    ),
    "apertus": Form("{NAME: ARGS}", begin=apertus.BEGIN, first="[", between=", ", last="]"),
    "cohere": Form(
        '{"tool_call_id": "0", "tool_name": NAME, "parameters": ARGS}',
        begin=cohere.BEGIN,
        first="[\n    ",
        between=",\n    ",
        last=f"\n]{cohere.END}",
    ),
    "seed_oss": Form(
        f"\n<function=PLAIN>\nARGS</function>\n{SEED_OSS.block[1]}",
        begin=SEED_OSS.block[0],
        between=f"\n{SEED_OSS.block[0]}",
        values=SEED_OSS,
    ),
    "gemma4": Form(
        f"call:PLAINARGS{gemma4.END}",
        begin=gemma4.BEGIN,
        between=gemma4.BEGIN,
        arguments=bare_arguments,
    ),
    "kimi_k2": Form(
        f"{kimi.CALL_BEGIN}functions.PLAIN:COUNT{kimi.ARGUMENTS}ARGS{kimi.CALL_END}",
        begin=kimi.BEGIN,
        between="",
        last=kimi.END,
    ),
    "lfm2": Form(
        "PLAIN(ARGS)",
        begin=lfm2.BEGIN,
        first="[",
        between=", ",
        last=f"]{lfm2.END}",
        arguments=python_arguments,
    ),
    "pythonic": Form(
        "PLAIN(ARGS)",
        first="[",
        between=", ",
        last="]",
        plain=rf"/(?s:\s*([^\s\[].*)?)/ & ~/(?s:.*({_any_of(pythonic.LLAMA)}).*)/",
        arguments=python_arguments,
    ),
    "granite": Form(
        '{"name": NAME, "arguments": ARGS}',
        begin=granite.BEGIN,
        first="[",
        between=", ",
        last="]",
    ),
    "glm4": Form(
        "PLAIN\nARGS",
        between=glm4.TURN,
        # An answer's first line is no name in front of an object.
        plain=rf"/(?s:.*)/ & ~/(?s:\s*[^\s{{}}<>`]*[ \t]*\n\s*\{{.*)/"
        rf" & ~/(?s:.*{_any_of(glm4.TAGS)}.*)/",
    ),
}
ALL_TAGS: Final = frozenset(tag for form in FORMATS.values() for tag in form.tags)
_WORDS = r"\bNAME\b|\bPLAIN(?=ARGS|\b)|(?:\b|(?<=PLAIN))ARGS\b(?!\](?!<))|\bID\b|\bCOUNT\b"
SPLIT: Final = re.compile(
    "(" + "|".join([*map(re.escape, sorted(ALL_TAGS, key=len, reverse=True)), _WORDS]) + ")"
)
"""Cuts a text into its tags, its words, and what is between them."""
PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
