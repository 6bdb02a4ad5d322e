"""The guide's form of a conversation: special tokens, chat template, and examples as tokens.

Owns the template's text. `encode` writes the same tokens as the template does (a test compares),
with a loss weight for each, because only the parts know what is prompt and what is answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, THOUGHT = "<think>", "</think>"
NO_THOUGHT = f"{THINK}\n\n{THOUGHT}\n\n"
"""Closes the prompt when the model must not think."""

TEMPLATE = """\
{#- The guide's chat format: turns between start and end marks. Thinking is off by default: then an
    empty block closes the prompt; when it is on, the prompt opens the block and the model goes on.
    Earlier turns are shown without what was thought. -#}
{%- for message in messages %}
{%- set text = message.content if message.content is string else '' %}
{%- if message.role == 'assistant' and '</think>' in text %}
{%- set text = text.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking %}
{{- '<think>\\n' }}
{%- else %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}
"""

OPENING_TOKENS = 8
"""The first tokens of an answer or thought pick its topic; they weigh more than the rest."""
OPENING_WEIGHT = 4.0

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what was asked and answered."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation whose last answer is to be learnt.

    Attributes:
        system: the system turn; empty for none.
        history: earlier exchanges.
        thought: what is thought before the answer; None if thinking is off.
    """

    question: str
    answer: str
    system: str = ""
    history: tuple[Turn, ...] = ()
    thought: str | None = None

    def messages(self) -> list[dict[str, str]]:
        """The prompt's messages, as the chat template takes them."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.history:
            found.append({"role": "user", "content": turn.question})
            found.append({"role": "assistant", "content": turn.answer})
        return [*found, {"role": "user", "content": self.question}]


@dataclass(slots=True)
class Tokens:
    """Token ids and, for each, how much predicting it counts; 0 for the prompt."""

    ids: list[int]
    weights: list[float]

    def add(self, ids: Sequence[int], weight: float = 0.0) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)

    def add_answer(self, ids: Sequence[int]) -> None:
        self.add(ids[:OPENING_TOKENS], OPENING_WEIGHT)
        self.add(ids[OPENING_TOKENS:], 1.0)


def encode(example: Example, plain: Encode, user: Encode) -> Tokens:
    """The example as tokens; `user` encodes what users type, `plain` the rest."""
    tokens = Tokens([], [])
    if example.system:
        tokens.add(plain(f"{START}system\n{example.system}{END}\n"))
    for turn in example.history:
        _add_user(tokens, turn.question, plain, user)
        answer = plain(turn.answer + END)
        # The first token says "I do not think": learnt here, where the template has stripped the
        # thought, it would teach the model to skip it. So it counts nothing.
        tokens.add(answer[:1])
        tokens.add(answer[1:], 1.0)
        tokens.add(plain("\n"))
    _add_user(tokens, example.question, plain, user)
    if example.thought is None:
        tokens.add(plain(NO_THOUGHT))
    else:
        # The template writes this; learnt all the same, for prompts that other templates write.
        tokens.add(plain(f"{THINK}\n"), 1.0)
        tokens.add_answer(plain(f"{example.thought}\n{THOUGHT}\n\n"))
    tokens.add_answer(plain(example.answer + END))
    return tokens


def _add_user(tokens: Tokens, text: str, plain: Encode, user: Encode) -> None:
    tokens.add(plain(f"{START}user\n"))
    tokens.add(user(text))
    tokens.add(plain(f"{END}\n{START}assistant\n"))
