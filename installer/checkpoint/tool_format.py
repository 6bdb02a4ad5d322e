"""In which format a template writes calls, found out by letting it write one.

Owns the traces by which the formats are told apart. A format counts only if the tokenizer has
its tags as tokens: a model that has to spell them was not trained on them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from appliance.bundle.specs import ToolFormat
from appliance.prompting import (
    apertus,
    cohere,
    deepseek,
    dsml,
    gemma4,
    glm4,
    granite,
    harmony,
    kimi,
    lfm2,
    llama4,
    messages,
    minimax_m3,
    muse,
)
from appliance.prompting.formats import FORMATS
from appliance.prompting.hy3 import HY3, SEPARATOR

FUNCTION: Final = "find_north"
TOOL: Final = {
    "type": "function",
    "function": {
        "name": FUNCTION,
        "description": "Finds north.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "Where."}},
            "required": ["place"],
        },
    },
}
CALL_TURN: Final = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        # An id of nine characters, since Mistral's templates refuse others.
        {
            "type": "function",
            "id": "a1b2c3d4e",
            "function": {"name": FUNCTION, "arguments": {"place": "here"}},
        }
    ],
}
ANSWERED_TURNS: Final = (
    CALL_TURN,
    {"role": "tool", "content": "up", "tool_call_id": "a1b2c3d4e"},
)
_SEPARATOR = re.escape(deepseek.SEPARATOR)
_TRACES: Final[Mapping[ToolFormat, str]] = {
    "harmony": rf"to=functions\.{FUNCTION}\b",
    "muse": rf"to={FUNCTION}{re.escape(messages.MESSAGE)}{muse.MUSE.block[0]}\s*"
    rf'{muse.MUSE.call[0]}{FUNCTION}">',
    "deepseek": rf"{_SEPARATOR}{FUNCTION}\s*```json",
    "deepseek_v31": rf"{re.escape(deepseek.CALL_BEGIN)}{FUNCTION}{_SEPARATOR}",
    "dsml": rf'{re.escape(dsml.DSML.block[0])}\n{re.escape(dsml.DSML.call[0])}{FUNCTION}">',
    "dsml_v4": rf"{re.escape(dsml.DSML_V4.block[0])}\n"
    rf'{re.escape(dsml.DSML_V4.call[0])}{FUNCTION}">',
    "minimax": rf'<minimax:tool_call>\s*<invoke name="{FUNCTION}">',
    "minimax_m3": rf"{re.escape(minimax_m3.M3.block[0])}\s*"
    rf'{re.escape(minimax_m3.M3.call[0])}{FUNCTION}">',
    "seed_oss": rf"<seed:tool_call>\s*<function={FUNCTION}>",
    "gemma4": rf"{re.escape(gemma4.BEGIN)}call:{FUNCTION}\{{",
    "apertus": rf'{re.escape(apertus.BEGIN)}\[\{{"{FUNCTION}": ',
    "cohere": rf'{re.escape(cohere.BEGIN)}\[\s*\{{[^{{}}]*"tool_name": "{FUNCTION}"',
    "qwen_coder": rf"<tool_call>\s*<function={FUNCTION}>",
    "glm": rf"<tool_call>{FUNCTION}\n<arg_key>",
    "glm_v47": rf"<tool_call>{FUNCTION}<arg_key>",
    "hy3": rf"{re.escape(HY3.call[0])}{FUNCTION}{re.escape(SEPARATOR)}",
    "mistral_v11": rf"\[TOOL_CALLS\]{FUNCTION}\[CALL_ID\]",
    "mistral_v13": rf"\[TOOL_CALLS\]{FUNCTION}\[ARGS\]",
    "mistral": rf'\[TOOL_CALLS\]\s*\[\{{"name": "{FUNCTION}"',
    "hermes": rf'<tool_call>\s*\{{[^<]*"{FUNCTION}"',
    "kimi_k2": rf'{re.escape(kimi.CALL_BEGIN)}[^<]+{re.escape(kimi.ARGUMENTS)}\{{"place": ',
    "lfm2": rf"{re.escape(lfm2.BEGIN)}\[{FUNCTION}\(place=",
    "pythonic": rf"(?<!{re.escape(lfm2.BEGIN)})\[{FUNCTION}\(place=",
    "llama4": rf'{re.escape(llama4.END)}\{{"name": "{FUNCTION}", "parameters": \{{',
    "llama": rf'\{{"name": "{FUNCTION}", "parameters": \{{',
}
"""What a call to FUNCTION looks like; in this order, since Llama's has no tags."""
_SAID: Final[Mapping[ToolFormat, tuple[str, str]]] = {
    "granite": (
        re.escape(granite.BEGIN),
        rf'{re.escape(granite.BEGIN)}\[\{{"name": "{FUNCTION}"',
    ),
    "glm4": ("", rf'{re.escape(glm4.TURN)}{FUNCTION}\n\{{"place": '),
    "lfm2": ("List of tools: ", _TRACES["lfm2"]),
}
"""Formats whose templates leave calls to what a turn says: what these show with tools, and what a
call is when a turn says it."""
_TOKENS: Final[Mapping[ToolFormat, tuple[str, ...]]] = {
    "llama": (),
    "pythonic": (),
    "glm4": (glm4.TURN, glm4.OBSERVATION),
    "mistral": ("[TOOL_CALLS]",),
    "mistral_v11": ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    "mistral_v13": ("[TOOL_CALLS]", "[ARGS]"),
    "minimax_m3": (minimax_m3.MARK,),
    "harmony": (harmony.CHANNEL, messages.MESSAGE, harmony.END, harmony.CALL),
    "muse": muse.FRAME,
}
"""The tags that must be tokens, where these are not all of the format's."""


def tool_format(
    shown: str,
    written: str,
    has_tokens: Callable[[tuple[str, ...]], bool],
    said: Callable[[ToolFormat], str],
) -> ToolFormat:
    """The format of a template; "" if it offers no tools, or in a format that is not known.

    Args:
        shown: a prompt with TOOL.
        written: a conversation with CALL_TURN; empty if the template refuses one.
        has_tokens: whether all of these texts are tokens.
        said: ANSWERED_TURNS with the call as the turn says it in a format; empty if refused.
    """
    if FUNCTION not in shown:
        return ""
    for name, trace in _TRACES.items():
        if re.search(trace, written) and has_tokens(_TOKENS.get(name, FORMATS[name].tags)):
            return name
    if written.count(FUNCTION) <= shown.count(FUNCTION):
        for name, (explains, trace) in _SAID.items():
            tokens = _TOKENS.get(name, FORMATS[name].tags)
            if re.search(explains, shown) and has_tokens(tokens) and re.search(trace, said(name)):
                return name
    # Some templates explain Hermes's format, and do not write a call themselves.
    tags = FORMATS["hermes"].tags
    explained = tags[0] in shown and "<function=" not in shown
    writes_another = written.count(tags[0]) > shown.count(tags[0])
    return "hermes" if explained and not writes_another and has_tokens(tags) else ""


def speaks_harmony(source: str, has_tokens: Callable[[tuple[str, ...]], bool]) -> bool:
    """Whether turns are made of channels, with tools or without."""
    return harmony.CHANNEL in source and has_tokens(_TOKENS["harmony"])
