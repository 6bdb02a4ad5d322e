"""The family that builds a checkpoint, for what its files and the packager say.

Owns the refusals of those that none builds.
"""

from __future__ import annotations

from appliance.errors import CheckpointError
from installer.checkpoint.families.family import Family
from installer.checkpoint.families.known import FAMILIES, FOR_A_PURPOSE
from installer.checkpoint.families.purpose import CARD, Kind, purpose_of
from installer.checkpoint.reader import Checkpoint

OTHER_STATES = frozenset(
    {
        *("minimax", "minimax_text_01", "minimax_m1", "bailing_hybrid"),
        *("mamba", "mamba2", "jamba", "falcon_mamba"),
        *("zamba", "zamba2", "recurrent_gemma", "rwkv"),
    }
)
"""Architectures with layers that keep a running state of a kind that is not built."""


def family_of(checkpoint: Checkpoint, asked: Kind | None = None) -> Family:
    """The family of `checkpoint`, for what its files say or the packager `asked`.

    Raises CheckpointError naming the ones there are, or if the two disagree.
    """
    family = FAMILIES.get(checkpoint.family)
    if checkpoint.family in OTHER_STATES:
        raise CheckpointError(
            f"config.json: model_type {checkpoint.family!r} has layers that keep a running state "
            "of a kind that is not built",
            hint="this release builds Gated DeltaNets (Qwen3.5, Qwen3-Next, OLMo Hybrid, "
            "Kimi-Linear), Mamba-2 layers (Granite 4.0 H, Nemotron-H, Falcon-H1, Bamba), short "
            "convolutions, and layers that keep keys and values of every token; of MiniMax it "
            "builds MiniMax-M2 and M3, which have only such",
        )
    if family is None:
        raise CheckpointError(
            f"config.json: model_type {checkpoint.family!r} is not supported",
            hint=f"this release builds {', '.join(FAMILIES)}",
        )
    if family.closer is not None:
        family = family.closer(checkpoint)
    said = purpose_of(checkpoint)
    if None not in (asked, said) and asked != said:
        raise CheckpointError(
            f"the checkpoint's files say that it is for {said}, not for {asked}",
            hint="leave --kind out, or correct modules.json, the template and the model card",
        )
    kind = asked or said
    if kind is None and is_ambiguous(checkpoint) and not checkpoint.has(CARD):
        raise CheckpointError(
            f"nothing says what this {checkpoint.family} checkpoint is for, and it has no {CARD}",
            hint="get the missing files from the publisher, or say it: --kind chat, embedding or "
            "rerank",
            code="kind_unknown",
        )
    if kind in (None, family.kind):
        return family
    found = FOR_A_PURPOSE.get((checkpoint.family, kind))
    if found is None:
        raise CheckpointError(
            f"a {checkpoint.family} checkpoint for {kind} is not supported",
            hint="this release builds these: "
            + ", ".join(f"{name} for {one}" for name, one in FOR_A_PURPOSE),
        )
    return found


def is_ambiguous(checkpoint: Checkpoint) -> bool:
    """Whether only the model card can say what this one is for.

    Embedders have modules.json; of rerankers that are decoders there may be no other sign.
    """
    family = FAMILIES[checkpoint.family]
    return family.kind == "chat" and (checkpoint.family, "rerank") in FOR_A_PURPOSE
