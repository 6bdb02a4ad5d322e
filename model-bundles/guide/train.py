"""Train the guide and write its checkpoint.

    python model-bundles/guide/train.py --out DIR [--steps N]

Needs the project's `dev` dependencies and the embeddings checkpoint (scripts/fetch-minilm).
Reads data/ and docs/handbook/ and never a held-out or development question.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch

from guide_recipe.chat import END, END_OF_TEXT, Example, Tokens, encode
from guide_recipe.composer import Composer
from guide_recipe.publishing import publish
from guide_recipe.reference_encoder import CHECKPOINT, ReferenceEncoder
from guide_recipe.sources import Sources, read_sources
from guide_recipe.training import Plan, new_model, train
from guide_recipe.vocabulary import encode_broken, train_tokenizer

EVERY = 50
"""Steps between two lines of progress."""


def main() -> None:
    """Command line of the recipe."""
    options = _options()
    torch.set_num_threads(options.threads)
    plan = Plan(steps=options.steps, seed=options.seed)
    started = time.monotonic()
    make(read_sources(), plan, encoder=options.encoder, out=options.out)
    print(f"done in {time.monotonic() - started:.0f} s: {options.out}")


def make(sources: Sources, plan: Plan, *, encoder: Path, out: Path) -> None:
    """The recipe: tokenizer, examples, training, checkpoint."""
    tokenizer = train_tokenizer(sources)
    chance = Random(plan.seed)

    def tokens_of(example: Example) -> Tokens:
        return encode(
            example,
            lambda text: tokenizer.encode(text).ids,
            lambda text: encode_broken(tokenizer, text, chance),
        )

    ids = {"end": tokenizer.token_to_id(END), "pad": tokenizer.token_to_id(END_OF_TEXT)}
    model = new_model(tokenizer.get_vocab_size(), ids, seed=plan.seed)
    composer = Composer(sources, ReferenceEncoder(encoder), seed=plan.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {plan.steps} steps")
    train(model, _examples(composer), tokens_of, plan, _report)
    publish(model, tokenizer, out)


def _examples(composer: Composer) -> Iterator[Example]:
    while True:
        yield composer.example()


def _report(step: int, loss: float, rate: float, speed: float) -> None:
    if step % EVERY == 0:
        print(f"step {step}: loss {loss:.3f}, rate {rate:.1e}, {speed:.0f} tokens/s", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the guide.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--encoder", type=Path, default=CHECKPOINT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
