"""Greedy answers from a published checkpoint, in the reference implementation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from guide_recipe.chat import THINK, THOUGHT

MAX_TOKENS = 200
_BATCH = 32
_OPENING, _CLOSING = f"{THINK}\n", f"\n{THOUGHT}\n\n"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages as the chat template takes them, and whether to think."""

    messages: tuple[dict[str, str], ...]
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote.

    Attributes:
        text: the answer without what was thought.
        thought: what was thought; None if there was no well-formed block of it.
        ended: the model ended its turn by itself.
    """

    text: str
    thought: str | None
    ended: bool


class Answerer:
    """One checkpoint, loaded in fp32."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @property
    def parameters(self) -> int:
        """How many there are, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """An answer to each prompt, in order."""
        texts = [self.render(prompt) for prompt in prompts]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: dict[int, Answer] = {}
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            written = self._generate([texts[i] for i in batch])
            found |= dict(zip(batch, written, strict=True))
        return [found[i] for i in range(len(texts))]

    def render(self, prompt: Prompt) -> str:
        """The prompt's text, by the checkpoint's own template."""
        text = self.tokenizer.apply_chat_template(
            list(prompt.messages),
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=prompt.thinking,
        )
        return cast(str, text)

    @torch.no_grad()
    def _generate(self, texts: list[str]) -> Iterator[Answer]:
        batch = self.tokenizer(texts, return_tensors="pt", padding=True)
        batch.pop("token_type_ids", None)
        output = self.model.generate(**batch, max_new_tokens=MAX_TOKENS, do_sample=False)
        for prompt, row in zip(
            texts, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True
        ):
            yield self._parse(row, opened=prompt.endswith(_OPENING))

    def _parse(self, ids: list[int], *, opened: bool) -> Answer:
        ends = self.model.generation_config.eos_token_id
        length = next((i for i, token in enumerate(ids) if token in ends), None)
        text = cast(str, self.tokenizer.decode(ids[:length], skip_special_tokens=False))
        thought = None
        if (opened or text.startswith(_OPENING)) and _CLOSING in text:
            thought, text = text.removeprefix(_OPENING).split(_CLOSING, maxsplit=1)
        return Answer(text, thought, length is not None)
