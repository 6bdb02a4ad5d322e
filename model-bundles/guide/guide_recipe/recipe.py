"""The recipe in one function: tokenizer, examples, training, checkpoint."""

from __future__ import annotations

from pathlib import Path
from random import Random

from guide_recipe.chat import Example, Tokens, encode
from guide_recipe.composer import Composer
from guide_recipe.publishing import publish
from guide_recipe.reference_encoder import Embed
from guide_recipe.sources import Sources
from guide_recipe.training import Plan, Report, new_model, train
from guide_recipe.vocabulary import encode_broken, train_tokenizer


def make(sources: Sources, plan: Plan, embed: Embed, out: Path, report: Report) -> None:
    """Train the guide on `sources` and publish it in the directory `out`."""
    tokenizer = train_tokenizer(sources)
    chance = Random(plan.seed)

    def tokens_of(example: Example) -> Tokens:
        return encode(
            example,
            lambda text: tokenizer.encode(text).ids,
            lambda text: encode_broken(tokenizer, text, chance),
        )

    model = new_model(tokenizer, seed=plan.seed)
    composer = Composer(sources, embed, seed=plan.seed)
    train(model, composer.example, tokens_of, plan, report)
    publish(model, tokenizer, out)
