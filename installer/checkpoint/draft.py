"""A small model that guesses for the bundle's own: what is understood of its checkpoint.

Owns the refusals. Both must have one tokenizer, since guesses are tokens, and both an 8-bit cache,
since only such models verify guesses. Nothing compares it with a reference: whatever it guesses,
the bundle's model verifies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from appliance.bundle.specs import DecoderSpec, DraftSpec
from appliance.errors import CheckpointError
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph_list import graphs_of
from installer.checkpoint.licence import find_licence
from installer.checkpoint.plan import Plan
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.tokenizer import CheckpointTokenizer


def with_draft(plan: Plan, directory: Path, license_file: Path | None) -> Plan:
    """`plan` with the model in `directory` to guess for it.

    `license_file` has its licence's text, if the checkpoint has none. Raises CheckpointError.
    """
    if plan.family.recurrent:
        raise CheckpointError(
            f"a model of type {plan.checkpoint.family!r} takes no draft model: layers with a "
            "running state cannot take back what they read of a wrong guess",
            hint="leave --draft out",
            code="draft_not_verified",
        )
    if plan.family.uneven:
        raise CheckpointError(
            f"a model of type {plan.checkpoint.family!r} takes no draft model: its layers differ "
            "in their heads, and draft models were not tried beside such",
            hint="leave --draft out",
            code="draft_not_verified",
        )
    if not plan.joined:
        raise CheckpointError(
            f"a {plan.family.kind} model in {plan.precision} takes no draft model: only chat "
            "models in w8a8 and w4a8 verify guesses",
            hint="build it in w8a8, or leave --draft out",
            code="draft_not_verified",
        )
    checkpoint = Checkpoint(directory)
    family = family_of(checkpoint, None)
    cannot = family.kind != "chat" or family.recurrent or family.uneven
    if cannot or plan.precision not in family.precisions:
        raise CheckpointError(
            f"the draft model: a model of type {checkpoint.family!r} cannot draft",
            hint="take a small chat model of the same family",
            code="draft_unfit",
        )
    shape = family.read(checkpoint)
    tokenizer = CheckpointTokenizer(checkpoint, shape.vocab)
    _refuse_another(plan.tokenizer, tokenizer)
    draft = Plan(
        checkpoint=checkpoint,
        family=family,
        precision=plan.precision,
        shape=shape,
        licence=find_licence(checkpoint, license_file),
        tokenizer=tokenizer,
        chat=plan.chat,
        generation=plan.generation,
        max_file_bytes=plan.max_file_bytes,
        gate=None,
        vision=None,
        drafts=True,
    )
    draft = draft.without_head("a draft model does not speculate itself")
    return replace(plan.without_head("a draft model guesses in its place"), draft=draft)


@contextmanager
def refusing_draft() -> Iterator[None]:
    """Say of what is refused within that it is the draft model that is."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            f"the draft model: {error.message}",
            hint=f"{error.hint}, or take another one, or leave --draft out",
            code="draft_unfit",
        ) from error


def draft_spec(plan: Plan, origin: str) -> DraftSpec:
    """What the manifest says of a draft model; `origin` is its checkpoint's digest."""
    spec = plan.spec
    assert isinstance(spec, DecoderSpec), "it was found to be a chat model"
    return DraftSpec(
        family=plan.checkpoint.family,
        license=plan.licence.identifier,
        checkpoint_sha256=origin,
        graphs=graphs_of(plan),
        decoder=spec,
    )


def _refuse_another(own: CheckpointTokenizer, other: CheckpointTokenizer) -> None:
    """Raise CheckpointError unless both tokenizers have the same tokens by the same numbers."""
    odd = sorted(dict(own.tokens.items() ^ other.tokens.items()), key=str)
    if odd:
        raise CheckpointError(
            f"the draft model has another tokenizer: {odd[0]!r} is {_numbered(own, odd[0])} in the "
            f"model's and {_numbered(other, odd[0])} in its own",
            hint="take a draft model of the same family and release, or leave --draft out",
            code="draft_tokenizer_differs",
        )


def _numbered(tokenizer: CheckpointTokenizer, token: str) -> str:
    number = tokenizer.id_of(token)
    return "no token" if number is None else f"token {number}"
