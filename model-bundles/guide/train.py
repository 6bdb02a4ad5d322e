"""Train the guide and write its checkpoint.

    python model-bundles/guide/train.py --out DIR [--steps N]

Needs the project's `dev` dependencies and the embeddings checkpoint (scripts/fetch-minilm).
Reads data/ and docs/handbook/ and never a held-out or development question.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from guide_recipe.recipe import make
from guide_recipe.reference_encoder import CHECKPOINT, ReferenceEncoder
from guide_recipe.sources import read_sources
from guide_recipe.training import Plan

EVERY = 50
"""Steps between two lines of progress."""


def main() -> None:
    """Command line of the recipe."""
    options = _options()
    torch.set_num_threads(options.threads)
    plan = Plan(steps=options.steps, seed=options.seed)
    started = time.monotonic()
    make(read_sources(), plan, ReferenceEncoder(options.encoder), options.out, _report)
    print(f"done in {time.monotonic() - started:.0f} s: {options.out}")


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
