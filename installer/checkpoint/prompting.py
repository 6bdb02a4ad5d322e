"""How messages become a prompt, found out from the checkpoint.

Owns the choice of the chat template and what the manifest says of it: special tokens, reasoning
tags, tool format, whether the model thinks unless told otherwise. All of that is observed by
rendering the template, in the sandbox the engine uses, and not guessed from the model's name.
Refuses checkpoints whose template is missing or does not show what the user said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Literal

import msgspec
from jinja2 import Template

from appliance.bundle.specs import Effort, FillIn, Prompting, ToolFormat
from appliance.errors import CheckpointError
from appliance.prompting import gemma4, harmony, muse
from appliance.prompting.conversation import effort, switches
from appliance.prompting.efforts import DEGREES, OFF
from appliance.prompting.environment import compile_template, render
from appliance.prompting.formats import FORMATS
from appliance.prompting.spelled_calls import spelled
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.tokenizer import CheckpointTokenizer
from installer.checkpoint.tool_format import (
    ANSWERED_TURNS,
    CALL_TURN,
    TOOL,
    speaks_harmony,
    tool_format,
)
from installer.checkpoint.written_templates import WRITTEN

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_PATH = "tokenizer/chat_template.jinja"

_FILL_IN = (
    FillIn(prefix="<|fim_prefix|>", suffix="<|fim_suffix|>", middle="<|fim_middle|>"),
    FillIn(
        prefix="<\uff5cfim\u2581begin\uff5c>",
        suffix="<\uff5cfim\u2581hole\uff5c>",
        middle="<\uff5cfim\u2581end\uff5c>",
    ),
    FillIn(prefix="<fim_prefix>", suffix="<fim_suffix>", middle="<fim_middle>"),
)
"""As Qwen, DeepSeek and StarCoder write them, in this order of the parts all of them."""
_REASONING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<mm:think>", "</mm:think>"),
    ("<think:opensource>", "</think:opensource>"),
)
"""The tags of reasoning, of which a model's vocabulary has one pair or none."""
_CHANNELS: Mapping[ToolFormat, tuple[str, str]] = {
    "harmony": (harmony.ANALYSIS, harmony.END),
    "muse": (muse.THOUGHT, muse.EOM),
    "gemma4": (gemma4.THOUGHT, gemma4.CHANNEL_END),
}
"""Of formats whose turns have channels: what opens that of reasoning is more than a token."""
_QUESTION = "Which way is north?"
_NO_WORD = "xhow_muchx"
"""That no template knows."""
_MAX_CHARS = 1 << 20
_DAY = datetime(2025, 1, 1)
"""What a template that names the day is told, so that a build does not depend on it."""


@dataclass(frozen=True, slots=True)
class ChatSource:
    """A chat template with what was observed of it."""

    template: str
    prompting: Prompting
    thinking: bool
    """Whether the model thinks where a request does not say."""
    end_ids: tuple[int, ...] = ()
    """Tokens that end a turn by the format of its calls."""
    written: bool = False
    """Whether it is this release's, since the publisher has none."""

    def prompt(self, text: str) -> str:
        """What the model would read if a user said `text`, on a fixed day.

        Raises CheckpointError.
        """
        tokens = {name: getattr(self.prompting, name) for name in ("bos_token", "eos_token")}
        return _Observed(self.template, tokens).render(text)

    def check_images(self, token: str) -> None:
        """Raise CheckpointError unless an image in a message becomes `token`, once."""
        tokens = {name: getattr(self.prompting, name) for name in ("bos_token", "eos_token")}
        parts = [{"type": "text", "text": _QUESTION}, {"type": "image"}]
        text = _Observed(self.template, tokens).render(parts)
        if text.count(token) != 1 or _QUESTION not in text:
            raise CheckpointError(
                f"the chat template does not write {token} for an image",
                hint="it is not the template of this model",
            )


def read_prompting(checkpoint: Checkpoint, tokenizer: CheckpointTokenizer) -> ChatSource:
    """Find the template and observe it. Raises CheckpointError."""
    source = tokenizer.template()
    if checkpoint.has(TEMPLATE_FILE):
        source = checkpoint.text(TEMPLATE_FILE)
    lacking = not source and checkpoint.family in WRITTEN
    if lacking:
        source = WRITTEN[checkpoint.family]
    if not source:
        raise CheckpointError(
            "the checkpoint has no chat template",
            hint=f"it may be a base model: use its chat variant, or add {TEMPLATE_FILE}",
        )
    tokens = {name: tokenizer.special(name) for name in ("bos_token", "eos_token")}
    observed = _Observed(source, tokens)
    tool_format = _tool_format(source, observed, tokenizer)
    start, end = _CHANNELS.get(tool_format) or _reasoning(source, tokenizer)
    efforts = observed.efforts() if start else ()
    prompting = Prompting(
        template=TEMPLATE_PATH,
        **tokens,
        reasoning_start=start,
        reasoning_end=end,
        tool_format=tool_format,
        fill_in=_fill_in(tokenizer),
        reasoning=observed.reasons() if start and not efforts else msgspec.UNSET,
        efforts=efforts or msgspec.UNSET,
    )
    ends = FORMATS[tool_format].ends if tool_format else ()
    return ChatSource(
        *(source, prompting, bool(start) and observed.thinks_by_default(efforts)),
        *(_known(ends, tokenizer), lacking),
    )


@lru_cache(1)
def _compiled(source: str) -> Template:
    """The template, once for all that a build asks of it. Raises jinja2.TemplateError."""
    return compile_template(source)


class _Observed:
    """A template, rendered to see what it does."""

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        self._fixed = {**tokens, "strftime_now": _DAY.strftime}
        try:
            self._template = _compiled(source)
        except Exception as error:
            raise _refused(error) from error
        if _QUESTION not in self.render():
            raise CheckpointError("the chat template does not show the user's message")

    def with_tools(self) -> tuple[str, str]:
        """A prompt that offers TOOL; a conversation that calls it, "" if that is refused."""
        return self.render(tools=[TOOL]), self._turns([CALL_TURN])

    def saying(self, written: ToolFormat) -> str:
        """A conversation that calls TOOL, in what a turn says; "" if that is refused."""
        return self._turns(spelled(ANSWERED_TURNS, written))

    def _turns(self, turns: Sequence[Mapping[str, object]]) -> str:
        question = {"role": "user", "content": _QUESTION}
        given = {**self._fixed, "messages": [question, *turns], "tools": [TOOL]}
        try:
            return render(self._template, given, _MAX_CHARS)
        except Exception:
            return ""

    def thinks_by_default(self, efforts: Sequence[str]) -> bool:
        """Whether saying nothing means the same as asking to think, or not the same as asking not
        to in a word of `efforts`."""
        if efforts:
            return self.render() != self._told(efforts[0])
        return self.render() == self.render(**switches(thinking=True))

    def reasons(self) -> Literal["always", "levels"] | msgspec.UnsetType:
        """What stands in the manifest's `prompting.reasoning`."""
        if self._told("low") != self._told("high"):
            return "levels"
        asked = [self.render(**switches(thinking=on)) for on in (False, True)]
        return "always" if asked[0] == asked[1] else msgspec.UNSET

    def efforts(self) -> tuple[Effort, ...]:
        """What stands in the manifest's `prompting.efforts`; empty if other switches tell it, or if
        it shows whatever word it is told."""
        asked = [self.render(**switches(thinking=on)) for on in (False, True)]
        off = next(filter(self._knows, OFF), None)
        if asked[0] != asked[1] or off is None:
            return ()
        most = self._told(DEGREES[-1])
        lower = (word for word in DEGREES[:-1] if self._told(word) not in (None, most))
        return () if most is None else (off, *lower, DEGREES[-1])

    def _knows(self, word: str) -> bool:
        """Whether that word of `reasoning_effort` does what no other does."""
        shown, other = self._told(word), self._told(_NO_WORD)
        if shown is None:
            return False
        return other is None or shown.replace(word, _NO_WORD) != other.replace(word, _NO_WORD)

    def _told(self, word: str) -> str | None:
        """The prompt of a conversation with that effort; None if it is refused."""
        try:
            return self.render(**effort(word))
        except CheckpointError:
            return None

    def render(self, question: object = _QUESTION, **variables: object) -> str:
        """The prompt of a conversation with one question. Raises CheckpointError."""
        messages = [{"role": "user", "content": question}]
        given = {**self._fixed, "messages": messages, "add_generation_prompt": True, **variables}
        try:
            # A template is a program from outside: it can fail in any way.
            return render(self._template, given, _MAX_CHARS)
        except Exception as error:
            raise _refused(error) from error


def _tool_format(source: str, observed: _Observed, tokenizer: CheckpointTokenizer) -> ToolFormat:
    def has_tokens(tokens: tuple[str, ...]) -> bool:
        return _has_tokens(tokenizer, tokens)

    if speaks_harmony(source, has_tokens):
        return "harmony"
    return tool_format(*observed.with_tools(), has_tokens, observed.saying)


def _reasoning(source: str, tokenizer: CheckpointTokenizer) -> tuple[str, str]:
    """The tags that the template knows and the vocabulary has; empty if none."""
    for tags in _REASONING:
        if _has_tokens(tokenizer, tags) and tags[1] in source:
            return tags
    return "", ""


def _known(tokens: tuple[str, ...], tokenizer: CheckpointTokenizer) -> tuple[int, ...]:
    ids = map(tokenizer.id_of, tokens)
    return tuple(token_id for token_id in ids if token_id is not None)


def _fill_in(tokenizer: CheckpointTokenizer) -> FillIn | msgspec.UnsetType:
    for tokens in _FILL_IN:
        if _has_tokens(tokenizer, (tokens.prefix, tokens.suffix, tokens.middle)):
            return tokens
    return msgspec.UNSET


def _has_tokens(tokenizer: CheckpointTokenizer, tokens: tuple[str, ...]) -> bool:
    return all(tokenizer.id_of(token) is not None for token in tokens)


def _refused(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the chat template cannot be rendered: {error}",
        hint="it is written for another renderer; correct it in the checkpoint",
    )
