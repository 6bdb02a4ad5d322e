"""How messages become a prompt, found out from the checkpoint.

Owns the choice of the chat template and what the manifest says of it: special tokens, reasoning
tags, tool format, whether the model thinks unless told otherwise. All of that is observed by
rendering the template, in the sandbox the engine uses, and not guessed from the model's name.
Refuses checkpoints whose template is missing or does not show what the user said.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
from jinja2 import Template

from appliance.bundle.manifest import FillIn, Prompting
from appliance.errors import CheckpointError
from appliance.prompting.environment import compile_template, render
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.tokenizer import CheckpointTokenizer

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
_REASONING = ("<think>", "</think>")
_HERMES = ("<tool_call>", "</tool_call>")
_QUESTION = "Which way is north?"
_TOOL = {
    "type": "function",
    "function": {
        "name": "find_north",
        "description": "Finds north.",
        "parameters": {"type": "object", "properties": {}},
    },
}
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

    def prompt(self, text: str) -> str:
        """What the model would read if a user said `text`, on a fixed day.

        Raises CheckpointError.
        """
        tokens = {name: getattr(self.prompting, name) for name in ("bos_token", "eos_token")}
        return _Observed(self.template, tokens).render(text, strftime_now=_DAY.strftime)

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
    if not source:
        raise CheckpointError(
            "the checkpoint has no chat template",
            hint=f"it may be a base model: use its chat variant, or add {TEMPLATE_FILE}",
        )
    tokens = {name: tokenizer.special(name) for name in ("bos_token", "eos_token")}
    observed = _Observed(source, tokens)
    thinks = _has_tokens(tokenizer, _REASONING) and _REASONING[1] in source
    calls = _has_tokens(tokenizer, _HERMES) and observed.offers_tools()
    prompting = Prompting(
        template=TEMPLATE_PATH,
        **tokens,
        reasoning_start=_REASONING[0] if thinks else "",
        reasoning_end=_REASONING[1] if thinks else "",
        tool_format="hermes" if calls else "",
        fill_in=_fill_in(tokenizer),
    )
    return ChatSource(source, prompting, thinks and observed.thinks_by_default())


class _Observed:
    """A template, rendered to see what it does."""

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        self._tokens = tokens
        try:
            self._template: Template = compile_template(source)
        except Exception as error:
            raise _refused(error) from error
        if _QUESTION not in self.render():
            raise CheckpointError("the chat template does not show the user's message")

    def offers_tools(self) -> bool:
        """Whether tools appear in the prompt, with the call format that is parsed here."""
        text = self.render(tools=[_TOOL])
        return "find_north" in text and _HERMES[0] in text

    def thinks_by_default(self) -> bool:
        """Whether saying nothing means the same as asking to think."""
        return self.render() == self.render(enable_thinking=True, thinking=True)

    def render(self, question: object = _QUESTION, **variables: object) -> str:
        """The prompt of a conversation with one question. Raises CheckpointError."""
        messages = [{"role": "user", "content": question}]
        given = {**self._tokens, "messages": messages, "add_generation_prompt": True, **variables}
        try:
            # A template is a program from outside: it can fail in any way.
            return render(self._template, given, _MAX_CHARS)
        except Exception as error:
            raise _refused(error) from error


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
