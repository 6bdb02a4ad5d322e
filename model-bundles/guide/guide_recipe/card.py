"""The model card, README.md of the checkpoint: data/card.md filled in with the figures."""

from __future__ import annotations

from guide_recipe.figures import Figures, Mode
from guide_recipe.sources import DATA, LATER
from installer.ask.retrieval import SHOWN


def card(figures: Figures, parameters: int) -> str:
    """The text of README.md."""
    return (
        (DATA / "card.md")
        .read_text(encoding="utf-8")
        .format(
            parameters=parameters,
            questions=figures.questions,
            off_topic=figures.off_topic,
            shown=SHOWN,
            later=len(LATER),
            with_passages=_cells(figures.with_passages),
            thinking=_cells(figures.thinking_with_passages),
            alone=_cells(figures.alone),
            bag_of_words=_cells(figures.bag_of_words),
            first=figures.retrieval.first,
            among_shown=figures.retrieval.among_shown,
            nothing_fits=figures.retrieval.nothing_fits_off_topic,
            undecided_on=figures.retrieval.undecided_on_topic,
            undecided_off=figures.retrieval.undecided_off_topic,
            follow_ups=figures.follow_ups_right,
            answers=figures.form.answers,
            ended=figures.form.ended,
            clean=figures.form.clean,
            thought=figures.form.thought_when_asked,
            unasked=figures.form.thought_unasked,
            verbatim=figures.form.right_are_verbatim,
        )
    )


def _cells(mode: Mode) -> str:
    return f"{mode.right:.1%} | {mode.refused:.1%} | {mode.falsely_refused:.1%}"
