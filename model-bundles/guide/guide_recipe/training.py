"""The training loop: examples to batches, loss at the answers, AdamW with a cosine schedule.

Owns the hyper-parameters. Trains in fp32 on the processor; the logits are computed at the
positions that count only, which is a quarter of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from guide_recipe.chat import END, END_OF_TEXT, Example, Tokens

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.1
CLIP = 1.0
WARM_UP = 0.03
FLOOR = 0.02
"""Learning rate at the end, as a share of the highest."""
POOL = 1024
"""Examples that are sorted by length before they are cut into batches."""
TRUNCATED = ((0.45, 0.9), (0.8, 0.4))
"""Until such a part of the run, such a share of the answers is cut after the opening, which is
cheaper and trains the choice of the topic. In the last part none is, so that answers end."""

Examples = Callable[[float], Example]
"""The next example, given the share of the run that is behind."""
Report = Callable[[int, float, float, float], None]


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train."""

    steps: int = 1500
    batch_tokens: int = 4096
    learning_rate: float = 2e-3
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids [rows, longest], and where which token counts how much: all [counted]."""

    ids: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    weights: torch.Tensor


def new_model(tokenizer: Tokenizer, *, seed: int) -> Qwen3ForCausalLM:
    """A fresh model for the vocabulary of `tokenizer`."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def train(
    model: Qwen3ForCausalLM,
    examples: Examples,
    encode: Callable[[Example], Tokens],
    plan: Plan,
    report: Report,
) -> None:
    """Train `model` in place. `report` gets step, loss, learning rate and tokens a second."""
    optimizer = torch.optim.AdamW(_groups(model), lr=plan.learning_rate, betas=BETAS)
    batches = _batches(examples, encode, plan)
    model.train()
    started, seen = time.monotonic(), 0
    for step in range(plan.steps):
        rate = plan.learning_rate * schedule(step / plan.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = next(batches)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        seen += batch.ids.numel()
        report(step, loss.item(), rate, seen / (time.monotonic() - started))
    model.eval()


def schedule(progress: float) -> float:
    """Share of the highest learning rate: linear warm-up, then half a cosine."""
    if progress < WARM_UP:
        return (progress + WARM_UP / 10) / (WARM_UP * 1.1)
    falling = (progress - WARM_UP) / (1 - WARM_UP)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * falling)) / 2


def loss_of(model: Qwen3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted mean cross-entropy. Rows are padded on the right, so causality masks for us."""
    states = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    logits = model.lm_head(states[batch.rows, batch.columns - 1])
    losses = functional.cross_entropy(
        logits, batch.ids[batch.rows, batch.columns], reduction="none"
    )
    return (losses * batch.weights).sum() / batch.weights.sum()


def _groups(model: Qwen3ForCausalLM) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _batches(
    examples: Examples, encode: Callable[[Example], Tokens], plan: Plan
) -> Iterator[Batch]:
    chance = Random(plan.seed)
    made = 0
    while True:
        progress = made / plan.steps
        cut = next((share for until, share in TRUNCATED if progress < until), 0.0)
        pool = [encode(examples(progress)) for _ in range(POOL)]
        pool = [_truncated(tokens) if chance.random() < cut else tokens for tokens in pool]
        groups = list(_by_length(pool, plan.batch_tokens))
        chance.shuffle(groups)
        made += len(groups)
        yield from map(collate, groups)


def _truncated(tokens: Tokens) -> Tokens:
    """Without what follows the opening of the last answer."""
    end = len(tokens.weights)
    while tokens.weights[end - 1] <= 1.0:
        end -= 1
    return Tokens(tokens.ids[:end], tokens.weights[:end])


def _by_length(pool: list[Tokens], budget: int) -> Iterator[list[Tokens]]:
    group: list[Tokens] = []
    for tokens in sorted(pool, key=lambda t: len(t.ids)):
        if group and (len(group) + 1) * len(tokens.ids) > budget:
            yield group
            group = []
        group.append(tokens)
    if group:
        yield group


def collate(group: Sequence[Tokens]) -> Batch:
    """Pad on the right and list the positions that count."""
    longest = max(len(tokens.ids) for tokens in group)
    ids = torch.zeros(len(group), longest, dtype=torch.long)
    weights = torch.zeros(len(group), longest)
    for row, tokens in enumerate(group):
        ids[row, : len(tokens.ids)] = torch.tensor(tokens.ids)
        weights[row, : len(tokens.weights)] = torch.tensor(tokens.weights)
    rows, columns = weights.nonzero(as_tuple=True)
    return Batch(ids, rows, columns, weights[rows, columns])
