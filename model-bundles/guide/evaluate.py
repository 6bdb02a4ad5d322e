"""Measure a checkpoint of the guide on questions that it was not trained on.

    python model-bundles/guide/evaluate.py CHECKPOINT             held-out; writes the figures
    python model-bundles/guide/evaluate.py CHECKPOINT --dev       development; prints what is wrong

Writes figures.json and the model card, README.md, into the checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch

from guide_recipe.answering import Answerer
from guide_recipe.card import card
from guide_recipe.figures import Measure
from guide_recipe.reference_encoder import CHECKPOINT, ReferenceEncoder
from guide_recipe.sources import read_dev, read_heldout, read_sources

FIGURES = "figures.json"
CARD = "README.md"


def main() -> None:
    """Command line of the evaluation."""
    options = _options()
    torch.set_num_threads(options.threads)
    answerer = Answerer(options.checkpoint)
    split = read_dev() if options.dev else read_heldout()
    encoder = ReferenceEncoder(options.encoder)
    measure = Measure(read_sources(), split, answerer.answers, encoder)
    figures = measure.figures()
    document = {"weights_sha256": _weights(options.checkpoint), **figures.document()}
    text = json.dumps(document, indent=2)
    print(text)
    if options.dev:
        _print_wrong(measure)
        return
    (options.checkpoint / FIGURES).write_text(text + "\n", encoding="utf-8")
    (options.checkpoint / CARD).write_text(card(figures, answerer.parameters), encoding="utf-8")


def _weights(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


def _print_wrong(measure: Measure) -> None:
    for mode, wrong in measure.wrong.items():
        print(f"\nwrong {mode}:")
        for question, text in wrong:
            print(f"  [{question.topic}] {question.text}\n      {text[:100]}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the guide.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dev", action="store_true", help="use the development questions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--encoder", type=Path, default=CHECKPOINT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
