"""The model families this release can build: one entry and one file each.

To add a family, write its file with `read(checkpoint)` and `build(graph, shape)`, name it here,
and add it to the parity tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from appliance.errors import CheckpointError
from installer.checkpoint.graph import (
    apertus,
    bert,
    bert_reranker,
    cohere2,
    decoder_embedder,
    deepseek,
    embedding_gemma2,
    ernie4_5_moe,
    eurobert,
    gemma3,
    glm4,
    glm4_moe,
    gpt_oss,
    granite,
    llama,
    mimo,
    minimax_m2,
    mistral,
    mistral3,
    mixtral,
    modernbert,
    nomic,
    olmo,
    olmoe,
    phi3,
    qwen2,
    qwen2_5_vl,
    qwen2_moe,
    qwen3,
    qwen3_5,
    qwen3_5_moe,
    qwen3_encoder,
    qwen3_moe,
    qwen3_next,
    qwen3_vl,
    qwen3_vl_moe,
    rotary_bert,
    seed_oss,
    smollm3,
)
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.purpose import CARD, Kind, purpose_of
from installer.checkpoint.graph.tower import TowerShape
from installer.checkpoint.quantize import Precision
from installer.checkpoint.reader import Checkpoint


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture becomes a graph.

    Attributes:
        kind: what the bundle serves.
        precisions: what it can be built in, the default first.
        read: checkpoint -> the family's own shape, which has a `spec()` for the manifest.
        build: writes the graph for that shape; of a chat model, in the form that is given too.
        unused_tensors: tensors that may be present and have no place in the graph.
        tower: writes the graph of the vision tower, given its shape; None: it reads text only.
            Such a decoder takes what the tower makes; it has no graph for TensorRT.
        recurrent: whether layers keep a running state: the processor alone computes them, and
            nothing guesses for them.
        standard: whether standard operators alone can express it, as the graph for TensorRT must.
        head: writes the graph of the head that predicts further tokens, given its shape, which
            `head_of` tells; None: it has none, or what it has is not built.
        stand_in: what the reference library reads in place of config.json's own words, where it
            has the architecture under another name.
        restated: config.json in the words of the reference library, where publishers have others.
    """

    kind: Kind
    precisions: tuple[Precision, ...]
    read: Callable[[Checkpoint], Any]
    build: Callable[..., None]
    unused_tensors: re.Pattern[str]
    tower: Callable[[GraphBuilder, TowerShape], None] | None = None
    recurrent: bool = False
    standard: bool = True
    head: Callable[..., None] | None = None
    head_of: Callable[[Any], Any] | None = None
    stand_in: Mapping[str, object] = field(default_factory=dict)
    restated: Callable[[Mapping[str, object]], dict[str, object]] = dict

    def choose(self, precision: Precision | None) -> Precision:
        """`precision`, or the default. Raises CheckpointError if the family does not bear it."""
        if precision is None:
            return self.precisions[0]
        if precision not in self.precisions:
            raise CheckpointError(
                f"a model of this kind is not built in {precision}: {self._why_not(precision)}",
                hint=f"choose one of {', '.join(self.precisions)}",
            )
        return precision

    def _why_not(self, precision: Precision) -> str:
        if self.recurrent:
            return _RECURRENT_LACK[precision]
        lacks = _SPARSE_LACK if self.kind == "chat" else _READERS_LACK
        return (lacks if self.tower is None else {**lacks, **_PICTURES_LACK})[precision]


_DECODER: tuple[Precision, ...] = ("w8a8", "w4a8", "int4", "int8", "fp8", "fp16", "fp32")
# Of experts and latents: no native operators, without which w4a8 is int4.
_SPARSE: tuple[Precision, ...] = ("w8a8", "int4", "int8", "fp16", "fp32")
_PICTURES: tuple[Precision, ...] = ("int8", "int4", "fp8", "fp16", "fp32")
_SPARSE_PICTURES = tuple(precision for precision in _PICTURES if precision != "fp8")
_PICTURES_LACK: Mapping[Precision, str] = {
    "w8a8": "the two graphs over its 8-bit cache take words alone, and this model sees images",
    "w4a8": "the graphs over its 8-bit cache take words alone, and this model sees images",
}
_SPARSE_LACK: Mapping[Precision, str] = {
    "w4a8": "native operators compute dense models alone, and without them int4 is as fast",
    "fp8": "experts are stored as integers or in 16 bits and more",
}
# Of layers with a running state: neither native operators nor graphs for a GPU.
_RECURRENT: tuple[Precision, ...] = ("w8a8", "int4", "int8", "fp32")
_RECURRENT_LACK: Mapping[Precision, str] = {
    "w4a8": "native operators compute layers that attend, and without them int4 is as fast",
    "fp8": "it is computed by the processor alone, which would widen the weights",
    "fp16": "it is computed by the processor alone, which would widen the weights",
}
# At 4 bits all-MiniLM-L6-v2 keeps a cosine of 0.94 with itself, at 8 bits 0.999.
_ENCODER: tuple[Precision, ...] = ("int8", "fp32")
_READERS_LACK: Mapping[Precision, str] = {
    "int4": "its vectors or scores would lose too much",
    "w8a8": "it has no cache, and would be no faster than int8 and less exact",
    "w4a8": "it has no cache, and would lose too much",
    "fp8": "int8 takes as much and is more exact",
    "fp16": "the processor would widen the weights to 32 bits, and a GPU narrows those of fp32",
}

_DECODER_UNUSED = re.compile(r"lm_head\.weight|.*\.rotary_emb\.inv_freq")
# Heads that draft several tokens at once; the engine guesses in its own way.
_MINIMAX_UNUSED = re.compile(rf"{_DECODER_UNUSED.pattern}|model\.mtp\..*")
_ERNIE_UNUSED = re.compile(rf"{_DECODER_UNUSED.pattern}|model\.mtp_[a-z_]+\..*")
# The pooler is a head for BERT's pre-training task; sentence encoders do not run it.
_BERT_UNUSED = re.compile(r"embeddings\.position_ids|pooler\.dense\.(weight|bias)")
_CROSS_ENCODER_UNUSED = re.compile(
    r"(bert|mpnet|roberta)\.embeddings\.position_ids"
    r"|(mpnet|roberta)\.pooler\.dense\.(weight|bias)"
)

# What pre-training predicts words with.
_MODERNBERT_UNUSED = re.compile(r"head\.(dense|norm)\.weight|decoder\.(weight|bias)")
_NONE_UNUSED = re.compile(r"(?!)")

_BERT = Family("embedding", _ENCODER, bert.read, bert.build, _BERT_UNUSED)
_CROSS_ENCODER = Family(
    "rerank", _ENCODER, bert_reranker.read, bert_reranker.build, _CROSS_ENCODER_UNUSED
)

# What sees and hears beside a text model.
_OTHERS_UNUSED = re.compile(r"(vision_tower|embed_vision|audio_tower|embed_audio)\..*")
# What sees images in front of a language model that is built without it.
_SIGHT_UNUSED = re.compile(
    r"(model\.)?(vision_tower|multi_modal_projector)\..*|(language_model\.)?lm_head\.weight"
)
# Likewise, and a head that predicts further tokens.
_QWEN35_UNUSED = re.compile(rf"{_DECODER_UNUSED.pattern}|model\.visual\..*|mtp\..*")


def _embedder(
    name: str, read: decoder_embedder.ReadDecoder, build: decoder_embedder.BuildDecoder
) -> Family:
    """Of a decoder that is read at each text's last token; the reference has it as `name`."""
    return Family(
        *("embedding", _ENCODER),
        partial(decoder_embedder.read_last, read=read, name=name),
        partial(decoder_embedder.build_last, build=build),
        _DECODER_UNUSED,
        stand_in={"architectures": [f"{name}Model"]},
    )


def _recurrent(read: Callable[[Checkpoint], Any], build: Callable[..., None]) -> Family:
    return Family(
        *("chat", _RECURRENT, read, build, _QWEN35_UNUSED), recurrent=True, standard=False
    )


FAMILIES: Mapping[str, Family] = {
    "apertus": Family("chat", _DECODER, apertus.read, apertus.build, _DECODER_UNUSED),
    "bert": _BERT,
    "cohere2": Family("chat", _DECODER, cohere2.read, cohere2.build, _DECODER_UNUSED),
    "deepseek_v2": Family(
        "chat", _SPARSE, deepseek.read_v2, deepseek.build, _DECODER_UNUSED, standard=False
    ),
    "deepseek_v3": Family(
        "chat", _SPARSE, deepseek.read, deepseek.build, _DECODER_UNUSED, standard=False
    ),
    "dots1": Family(
        "chat", _SPARSE, glm4_moe.read_dots, glm4_moe.build, _DECODER_UNUSED, standard=False
    ),
    "embedding_gemma2": Family(
        *("embedding", _ENCODER, embedding_gemma2.read, embedding_gemma2.build, _OTHERS_UNUSED),
        stand_in={"vision_config": None, "audio_config": None},
    ),
    "ernie4_5_moe": Family(
        "chat", _SPARSE, ernie4_5_moe.read, ernie4_5_moe.build, _ERNIE_UNUSED, standard=False
    ),
    "eurobert": Family(
        *("embedding", _ENCODER),
        partial(decoder_embedder.read_whole, read=eurobert.read),
        partial(decoder_embedder.build_whole, build=llama.build),
        _DECODER_UNUSED,
        stand_in={"architectures": ["EuroBertModel"]},
    ),
    "gemma3": Family("chat", _DECODER, gemma3.read_with_images, gemma3.build, _SIGHT_UNUSED),
    "gemma3_text": Family("chat", _DECODER, gemma3.read, gemma3.build, _DECODER_UNUSED),
    "glm4": Family("chat", _DECODER, glm4.read, glm4.build, _DECODER_UNUSED),
    "glm4_moe": Family(
        "chat", _SPARSE, glm4_moe.read, glm4_moe.build, _DECODER_UNUSED, standard=False
    ),
    "glm4_moe_lite": Family(
        "chat", _SPARSE, deepseek.read_glm, deepseek.build, _DECODER_UNUSED, standard=False
    ),
    "gpt_oss": Family(
        "chat", _SPARSE, gpt_oss.read, gpt_oss.build, _DECODER_UNUSED, standard=False
    ),
    "granite": Family("chat", _DECODER, granite.read, granite.build, _DECODER_UNUSED),
    "granitemoehybrid": Family(
        "chat", _DECODER, granite.read_hybrid, granite.build_hybrid, _DECODER_UNUSED
    ),
    "gte": Family("embedding", _ENCODER, rotary_bert.read_gte, rotary_bert.build, _BERT_UNUSED),
    "llama": Family("chat", _DECODER, llama.read, llama.build, _DECODER_UNUSED),
    "mimo": Family(
        *("chat", _DECODER, mimo.read, mimo.build, _DECODER_UNUSED),
        head=mimo.build_head,
        head_of=mimo.head_of,
        stand_in={"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    ),
    "minimax_m2": Family(
        "chat", _SPARSE, minimax_m2.read, minimax_m2.build, _MINIMAX_UNUSED, standard=False
    ),
    "ministral": Family("chat", _DECODER, mistral.read_ministral, mistral.build, _DECODER_UNUSED),
    "ministral3": Family("chat", _DECODER, mistral3.read, mistral3.build, _DECODER_UNUSED),
    "mistral": Family("chat", _DECODER, mistral.read, mistral.build, _DECODER_UNUSED),
    "modernbert": Family(
        *("embedding", _ENCODER, modernbert.read, modernbert.build, _MODERNBERT_UNUSED),
        stand_in={"architectures": ["ModernBertModel"]},
    ),
    "mpnet": Family(
        *("embedding", _ENCODER, bert.read, bert.build, _BERT_UNUSED),
        stand_in={"architectures": ["MPNetModel"]},
    ),
    "nomic_bert": Family(
        *("embedding", _ENCODER, nomic.read, rotary_bert.build, _BERT_UNUSED),
        restated=nomic.restated,
    ),
    "mistral3": Family("chat", _DECODER, mistral3.read_with_images, mistral3.build, _SIGHT_UNUSED),
    "mixtral": Family(
        "chat", _SPARSE, mixtral.read, mixtral.build, _DECODER_UNUSED, standard=False
    ),
    "olmo2": Family("chat", _DECODER, olmo.read, olmo.build, _DECODER_UNUSED),
    "olmo3": Family("chat", _DECODER, olmo.read_olmo3, olmo.build, _DECODER_UNUSED),
    "olmoe": Family("chat", _SPARSE, olmoe.read, olmoe.build, _DECODER_UNUSED, standard=False),
    "phi3": Family("chat", _DECODER, phi3.read, phi3.build, _DECODER_UNUSED),
    "qwen2": Family("chat", _DECODER, qwen2.read, qwen2.build, _DECODER_UNUSED),
    "qwen2_5_vl": Family(
        *("chat", _PICTURES, qwen2_5_vl.read, qwen2_5_vl.build, _DECODER_UNUSED),
        tower=qwen2_5_vl.build_tower,
        standard=False,
    ),
    "qwen2_moe": Family(
        "chat", _SPARSE, qwen2_moe.read, qwen2_moe.build, _DECODER_UNUSED, standard=False
    ),
    "qwen3": Family("chat", _DECODER, qwen3.read, qwen3.build, _DECODER_UNUSED),
    "qwen3_5": _recurrent(qwen3_5.read_with_images, qwen3_5.build),
    "qwen3_5_moe": _recurrent(qwen3_5_moe.read_with_images, qwen3_5_moe.build),
    "qwen3_5_moe_text": _recurrent(qwen3_5_moe.read, qwen3_5_moe.build),
    "qwen3_5_text": _recurrent(qwen3_5.read, qwen3_5.build),
    "qwen3_moe": Family(
        "chat", _SPARSE, qwen3_moe.read, qwen3_moe.build, _DECODER_UNUSED, standard=False
    ),
    "qwen3_next": _recurrent(qwen3_next.read, qwen3_next.build),
    "qwen3_vl": Family(
        *("chat", _PICTURES, qwen3_vl.read, qwen3_vl.build, _DECODER_UNUSED),
        tower=qwen3_vl.build_tower,
        standard=False,
    ),
    "qwen3_vl_moe": Family(
        *("chat", _SPARSE_PICTURES, qwen3_vl_moe.read, qwen3_vl_moe.build, _DECODER_UNUSED),
        tower=qwen3_vl.build_tower,
        standard=False,
    ),
    "roberta": _BERT,
    "seed_oss": Family("chat", _DECODER, seed_oss.read, seed_oss.build, _DECODER_UNUSED),
    "smollm3": Family("chat", _DECODER, smollm3.read, smollm3.build, _DECODER_UNUSED),
    "xlm-roberta": _BERT,
}

OTHER_STATES = frozenset(
    {
        *("minimax", "minimax_text_01", "minimax_m1", "kimi_linear", "bailing_hybrid"),
        *("mamba", "mamba2", "jamba", "bamba", "falcon_mamba", "falcon_h1", "nemotron_h"),
        *("zamba", "zamba2", "lfm2", "lfm2_moe", "lfm3", "recurrent_gemma", "rwkv", "olmo_hybrid"),
    }
)
"""Architectures with layers that keep a running state of another kind than Gated DeltaNets'."""

_FEWEST_OF_EMBEDDINGGEMMA = 128
"""Numbers that its vectors may be cut to, says its card."""

FOR_A_PURPOSE: Mapping[tuple[str, Kind], Family] = {
    ("bert", "rerank"): _CROSS_ENCODER,
    ("mpnet", "rerank"): _CROSS_ENCODER,
    ("roberta", "rerank"): _CROSS_ENCODER,
    ("xlm-roberta", "rerank"): _CROSS_ENCODER,
    ("gte", "rerank"): Family(
        *("rerank", _ENCODER, rotary_bert.read_gte_reranker, rotary_bert.build_reranker),
        _NONE_UNUSED,
    ),
    ("gemma3_text", "embedding"): Family(
        *("embedding", _ENCODER),
        partial(
            decoder_embedder.read_whole,
            read=gemma3.read_both_ways,
            fewest=_FEWEST_OF_EMBEDDINGGEMMA,
        ),
        partial(decoder_embedder.build_whole, build=gemma3.build),
        _DECODER_UNUSED,
    ),
    ("mistral", "embedding"): _embedder("Mistral", mistral.read, mistral.build),
    ("qwen2", "embedding"): _embedder("Qwen2", qwen2.read, qwen2.build),
    ("modernbert", "rerank"): Family(
        "rerank", _ENCODER, modernbert.read_reranker, modernbert.build_reranker, _NONE_UNUSED
    ),
    ("qwen3", "embedding"): Family(
        "embedding",
        _ENCODER,
        qwen3_encoder.read_embedder,
        qwen3_encoder.build_embedder,
        _DECODER_UNUSED,
    ),
    ("qwen3", "rerank"): Family(
        "rerank",
        _ENCODER,
        qwen3_encoder.read_reranker,
        qwen3_encoder.build_reranker,
        _DECODER_UNUSED,
    ),
}
"""Checkpoints of the same architecture that are published for something else."""


def family_of(checkpoint: Checkpoint, asked: Kind | None = None) -> Family:
    """The family of `checkpoint`, for what its files say or the packager `asked`.

    Raises CheckpointError naming the ones there are, or if the two disagree.
    """
    family = FAMILIES.get(checkpoint.family)
    if checkpoint.family in OTHER_STATES:
        raise CheckpointError(
            f"config.json: model_type {checkpoint.family!r} has layers that keep a running state "
            "of a kind that is not built",
            hint="this release builds Gated DeltaNets (Qwen3.5, Qwen3-Next), and layers that keep "
            "keys and values of every token; of MiniMax it builds MiniMax-M2, which has only such",
        )
    if family is None:
        raise CheckpointError(
            f"config.json: model_type {checkpoint.family!r} is not supported",
            hint=f"this release builds {', '.join(FAMILIES)}",
        )
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
