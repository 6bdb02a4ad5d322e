"""`appliance ask`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.config import Config, api_key
from installer.cli.output import JsonOption, RootOption, err, node_config, out, print_json

if TYPE_CHECKING:
    from installer.ask.endpoint import Piece
    from installer.ask.guide import Finding, Guide

KEY_NAME = "appliance ask"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("ask")(ask)


def ask(
    question: Annotated[str, typer.Argument(help="What you want to know, in your words.")],
    root: RootOption = None,
    model: Annotated[str, typer.Option(help="Chat model that answers.")] = "guide",
    embeddings: Annotated[str, typer.Option(help="Model that finds the passages.")] = "minilm",
    think: Annotated[bool, typer.Option("--think", help="Reason before answering.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask the guide how to operate this appliance.

    It looks the question up in the handbook and answers from what it finds. If two sections
    fit about equally well, it names them instead. An answer that is not from these sections is
    replaced by the words of the best. It never runs anything. The API key is that
    of APPLIANCE_API_KEY, or one that is made for the question and revoked after it.
    """
    with _guide(node_config(root), model, embeddings) as guide:
        finding = guide.find(question)
        if finding.undecided:
            _print_undecided(finding, question, as_json=as_json)
            return
        pieces = guide.answer(question, finding, think=think)
        if as_json:
            _print_document(question, finding, pieces)
        else:
            _print_live(finding, pieces)


@contextmanager
def _guide(config: Config, model: str, embeddings: str) -> Iterator[Guide]:
    from installer.ask.endpoint import Endpoint
    from installer.ask.guide import Guide
    from installer.local_endpoint import local_tls

    with _key(config) as secret:
        yield Guide(
            Endpoint(config.base_url, secret, local_tls(config)),
            handbook=config.layout.docs / "handbook",
            cache=config.layout.state / "ask",
            chat_model=model,
            embeddings_model=embeddings,
        )


@contextmanager
def _key(config: Config) -> Iterator[str]:
    from installer.passing_key import passing_key

    secret = api_key()
    if secret is not None:
        yield secret
    else:
        with passing_key(config.layout, KEY_NAME) as made:
            yield made


def _print_undecided(finding: Finding, question: str, *, as_json: bool) -> None:
    if as_json:
        print_json(_document(question, finding, answer=None, reasoning=""))
        return
    out.print("I am not sure. Did you mean:")
    for passage in finding.passages[:2]:
        out.print(f"- {passage.heading}: {passage.lead}", markup=False)


def _print_document(question: str, finding: Finding, pieces: Iterator[Piece]) -> None:
    found = list(pieces)
    answer = finding.passed_on("".join(piece.text for piece in found))
    reasoning = "".join(piece.reasoning for piece in found)
    print_json(_document(question, finding, answer=answer, reasoning=reasoning))


def _print_live(finding: Finding, pieces: Iterator[Piece]) -> None:
    """Reasoning as it comes; the answer when it is known to be from the passages."""
    said, reasoned = "", False
    for piece in pieces:
        if piece.reasoning:
            err.print(piece.reasoning, end="", markup=False, style="dim")
            reasoned = True
        said += piece.text
    if reasoned:
        err.print("\n")
    answer = finding.passed_on(said)
    out.print(answer, markup=False)
    _print_source(finding, answer)


def _print_source(finding: Finding, answer: str) -> None:
    source = finding.source_of(answer)
    if source is not None:
        err.print(f"source: {source.heading} (handbook/{source.page})", markup=False)
    elif "`" in answer:
        err.print("note: the handbook does not say this word for word; check it there first")


def _document(
    question: str, finding: Finding, *, answer: str | None, reasoning: str
) -> dict[str, object]:
    source = finding.source_of(answer) if answer else None
    return {
        "question": question,
        "answer": answer,
        "reasoning": reasoning,
        "undecided": finding.undecided,
        "source": source.id if source else None,
        "passages": [
            {
                "id": match.passage.id,
                "page": match.passage.page,
                "heading": match.passage.heading,
                "score": round(match.score, 4),
            }
            for match in finding.matches
        ],
    }
