"""The model families this release can build: one entry and one file each.

To add a family, write its file with `read(checkpoint)` and `build(graph, shape)`, name it here,
and add it to the parity tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from installer.checkpoint.families import (
    afmoe,
    apertus,
    axk1,
    bamba,
    bert,
    bert_reranker,
    cohere2,
    cohere2_moe,
    decoder_embedder,
    deepseek,
    deepseek_v4,
    deepseek_v4_shape,
    embedding_gemma2,
    ernie4_5_moe,
    eurobert,
    exaone4,
    falcon_h1,
    gemma3,
    gemma4,
    gemma4_shape,
    glm4,
    glm4_moe,
    gpt_oss,
    granite,
    granite_hybrid,
    hunyuan,
    hy_v3,
    kimi_k25,
    kimi_linear,
    lfm2,
    lfm2_moe,
    lfm3,
    llama,
    llama4,
    mimo,
    minimax_m2,
    minimax_m3,
    mistral,
    mistral3,
    mistral4,
    mistral_large4,
    mixtral,
    modernbert,
    muse_glimmer,
    muse_sight,
    muse_spark,
    nemotron_h,
    nomic,
    olmo,
    olmo_hybrid,
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
    qwen4_exp,
    rotary_bert,
    seed_oss,
    smollm3,
    unused,
)
from installer.checkpoint.families.family import (
    ATTENDING,
    BY_PROCESSOR,
    COMPRESSED,
    DECODER,
    ENCODER,
    PICTURES,
    RECURRENT,
    SPARSE,
    SPARSE_PICTURES,
    Family,
)
from installer.checkpoint.families.purpose import Kind
from installer.checkpoint.reader import Checkpoint

Read = Callable[[Checkpoint], Any]
"""A checkpoint -> its family's own shape."""
KindsOf = Callable[[Checkpoint], tuple[bool, bool]]
"""A checkpoint -> whether layers keep a running state, and whether some have experts."""
_BERT = Family("embedding", ENCODER, bert.read, bert.build, unused.BERT)
_CROSS_ENCODER = Family(
    "rerank", ENCODER, bert_reranker.read, bert_reranker.build, unused.CROSS_ENCODER
)


def _embedder(
    name: str, read: decoder_embedder.ReadDecoder, build: decoder_embedder.BuildDecoder
) -> Family:
    """Of a decoder that is read at each text's last token; the reference has it as `name`."""
    return Family(
        *("embedding", ENCODER),
        partial(decoder_embedder.read_last, read=read, name=name),
        partial(decoder_embedder.build_last, build=build),
        unused.DECODER,
        stand_in={"architectures": [f"{name}Model"]},
    )


def _dense(read: Read, build: Callable[..., None]) -> Family:
    return Family("chat", DECODER, read, build, unused.DECODER)


def _sparse(
    read: Read, build: Callable[..., None], left_out: re.Pattern[str] = unused.DECODER
) -> Family:
    """Of experts or latents."""
    return Family("chat", SPARSE, read, build, left_out, standard=False)


def _recurrent(
    read: Read,
    build: Callable[..., None],
    left_out: re.Pattern[str] = unused.QWEN35_SIGHT,
    *,
    experts: bool = False,
) -> Family:
    grades = SPARSE if experts else RECURRENT
    return Family(*("chat", grades, read, build, left_out), recurrent=True, standard=False)


def _recurrent_seeing(
    read: Read,
    build: Callable[..., None],
    read_words: Read,
    build_words: Callable[..., None],
    *,
    experts: bool = False,
) -> Family:
    return replace(
        _recurrent(read, build, unused.QWEN35),
        precisions=SPARSE_PICTURES if experts else PICTURES,
        tower=qwen3_vl.build_tower,
        words=_recurrent(read_words, build_words, experts=experts),
    )


def _by_layers(family: Family, kinds_of: KindsOf) -> Family:
    """Of an architecture that has models with a running state, with experts, both or neither."""

    def closer(checkpoint: Checkpoint) -> Family:
        states, experts = kinds_of(checkpoint)
        grades = SPARSE if experts else RECURRENT if states else DECODER
        plain = not (states or experts)
        return replace(family, precisions=grades, recurrent=states, standard=plain, closer=None)

    return replace(family, closer=closer)


def _by_part(family: Family, is_other: Callable[[Checkpoint], bool], other: Family) -> Family:
    """Of an architecture whose language model is a part, and may be of another family."""

    def closer(checkpoint: Checkpoint) -> Family:
        return other if is_other(checkpoint) else replace(family, closer=None)

    return replace(family, closer=closer)


def _granite_mixture(architecture: str) -> Family:
    read = partial(granite_hybrid.read_mixture, architecture=architecture)
    return _sparse(read, granite_hybrid.build)


def _by_processor(read: Read) -> Family:
    family = _recurrent(read, qwen4_exp.build, experts=True)
    return replace(family, precisions=BY_PROCESSOR, by_processor=True)


def _uneven(read: Read) -> Family:
    return Family(
        *("chat", ATTENDING, read, gemma4.build, unused.GEMMA4), uneven=True, standard=False
    )


FAMILIES: Mapping[str, Family] = {
    "afmoe": _sparse(afmoe.read, afmoe.build),
    "apertus": _dense(apertus.read, apertus.build),
    "AXK1": replace(_sparse(axk1.read, axk1.build), stand_in={"model_type": "axk1"}),
    "axk1": _sparse(axk1.read, axk1.build),
    "bamba": _recurrent(bamba.read, bamba.build, unused.DECODER),
    "bert": _BERT,
    "cohere2": _dense(cohere2.read, cohere2.build),
    "cohere2_moe": _sparse(cohere2_moe.read, cohere2_moe.build),
    "deepseek_v2": _sparse(deepseek.read_v2, deepseek.build),
    "deepseek_v3": _sparse(deepseek.read, deepseek.build),
    "deepseek_v32": _sparse(deepseek.read_v32, deepseek.build),
    "deepseek_v4": Family(
        *("chat", COMPRESSED, deepseek_v4_shape.read, deepseek_v4.build, unused.DECODER),
        uneven=True,
        by_processor=True,
        standard=False,
    ),
    "dots1": _sparse(glm4_moe.read_dots, glm4_moe.build),
    "embedding_gemma2": Family(
        *("embedding", ENCODER, embedding_gemma2.read, embedding_gemma2.build, unused.OTHERS),
        stand_in={"vision_config": None, "audio_config": None},
    ),
    "ernie4_5_moe": _sparse(ernie4_5_moe.read, ernie4_5_moe.build, unused.ERNIE),
    "eurobert": Family(
        *("embedding", ENCODER),
        partial(decoder_embedder.read_whole, read=eurobert.read),
        partial(decoder_embedder.build_whole, build=llama.build),
        unused.DECODER,
        stand_in={"architectures": ["EuroBertModel"]},
    ),
    "exaone4": _dense(exaone4.read, exaone4.build),
    "exaone_moe": replace(
        _sparse(exaone4.read_mixed, exaone4.build_mixed, unused.NEMOTRON),
        stand_in={"architectures": [exaone4.MIXED]},
    ),
    "falcon_h1": replace(
        _recurrent(falcon_h1.read, falcon_h1.build, unused.DECODER), precisions=ATTENDING
    ),
    "gemma3": Family("chat", DECODER, gemma3.read_with_images, gemma3.build, unused.SIGHT),
    "gemma3_text": _dense(gemma3.read, gemma3.build),
    "gemma4": _uneven(gemma4_shape.read_with_others),
    "gemma4_text": _uneven(gemma4_shape.read),
    "gemma4_unified": _uneven(partial(gemma4_shape.read_with_others, unified=True)),
    "gemma4_unified_text": _uneven(partial(gemma4_shape.read, unified=True)),
    "glm4": _dense(glm4.read, glm4.build),
    "glm4_moe": _sparse(glm4_moe.read, glm4_moe.build),
    "glm4_moe_lite": _sparse(deepseek.read_glm, deepseek.build),
    "glm_moe_dsa": _sparse(deepseek.read_glm5, deepseek.build),
    "gpt_oss": _sparse(gpt_oss.read, gpt_oss.build),
    "granite": _dense(granite.read, granite.build),
    "granitemoe": _granite_mixture("GraniteMoeForCausalLM"),
    "granitemoehybrid": _by_layers(
        _dense(granite_hybrid.read, granite_hybrid.build), granite_hybrid.kinds_of
    ),
    "granitemoeshared": _granite_mixture("GraniteMoeSharedForCausalLM"),
    "gte": Family("embedding", ENCODER, rotary_bert.read_gte, rotary_bert.build, unused.BERT),
    "hunyuan_v1_dense": Family(
        *("chat", ATTENDING, hunyuan.read, hunyuan.build, unused.DECODER), standard=False
    ),
    "hunyuan_v1_moe": _sparse(hunyuan.read_mixed, hunyuan.build),
    "hy_v3": _sparse(hy_v3.read, hy_v3.build),
    "kimi_k2": replace(
        _sparse(deepseek.read, deepseek.build), stand_in={"model_type": "deepseek_v3"}
    ),
    "kimi_k25": replace(
        _sparse(kimi_k25.read, kimi_k25.build, unused.KIMI_SIGHT),
        stand_in={"architectures": [kimi_k25.REFERENCE]},
    ),
    "kimi_linear": _recurrent(kimi_linear.read, kimi_linear.build, unused.DECODER, experts=True),
    "lfm2": _recurrent(lfm2.read, lfm2.build, unused.DECODER),
    "lfm2_moe": _recurrent(lfm2_moe.read, lfm2_moe.build, unused.DECODER, experts=True),
    "lfm3": _recurrent(lfm3.read, lfm3.build, unused.DECODER),
    "llama": _dense(llama.read, llama.build),
    "llama4": _sparse(llama4.read_with_images, llama4.build, unused.LLAMA4),
    "llama4_text": _sparse(llama4.read, llama4.build),
    "mimo": Family(
        *("chat", DECODER, mimo.read, mimo.build, unused.DECODER),
        head=mimo.build_head,
        head_of=mimo.head_of,
        stand_in={"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    ),
    "minimax_m2": _sparse(minimax_m2.read, minimax_m2.build, unused.MINIMAX),
    "minimax_m3_vl": _sparse(minimax_m3.read, minimax_m3.build, unused.MINIMAX3),
    "ministral": _dense(mistral.read_ministral, mistral.build),
    "ministral3": _dense(mistral3.read, mistral3.build),
    "mistral": _dense(mistral.read, mistral.build),
    "modernbert": Family(
        *("embedding", ENCODER, modernbert.read, modernbert.build, unused.MODERNBERT),
        stand_in={"architectures": ["ModernBertModel"]},
    ),
    "muse_glimmer": Family(
        *("chat", PICTURES, muse_sight.read, muse_sight.build, unused.DECODER),
        tower=muse_sight.build_tower,
        words=Family("chat", DECODER, muse_glimmer.read_words, muse_glimmer.build, unused.MUSE),
        standard=False,
    ),
    "muse_spark": _sparse(muse_spark.read, muse_spark.build, unused.MUSE),
    "mpnet": Family(
        *("embedding", ENCODER, bert.read, bert.build, unused.BERT),
        stand_in={"architectures": ["MPNetModel"]},
    ),
    "nemotron_h": _by_layers(
        Family(
            *("chat", RECURRENT, nemotron_h.read, nemotron_h.build, unused.NEMOTRON),
            restated=nemotron_h.restated,
        ),
        nemotron_h.kinds_of,
    ),
    "nomic_bert": Family(
        *("embedding", ENCODER, nomic.read, rotary_bert.build, unused.BERT),
        restated=nomic.restated,
    ),
    "mistral3": _by_part(
        Family("chat", DECODER, mistral3.read_with_images, mistral3.build, unused.SIGHT),
        mistral4.is_part,
        _sparse(mistral4.read_with_images, mistral4.build, unused.SIGHT),
    ),
    "mistral_large4": _sparse(mistral_large4.read, mistral_large4.build, unused.LARGE4),
    "mistral4": _sparse(mistral4.read, mistral4.build),
    "mixtral": _sparse(mixtral.read, mixtral.build),
    "olmo2": _dense(olmo.read, olmo.build),
    "olmo3": _dense(olmo.read_olmo3, olmo.build),
    "olmo_hybrid": replace(
        _recurrent(olmo_hybrid.read, olmo_hybrid.build, unused.DECODER),
        restated=olmo_hybrid.restated,
    ),
    "olmoe": _sparse(olmoe.read, olmoe.build),
    "phi3": _dense(phi3.read, phi3.build),
    "qwen2": _dense(qwen2.read, qwen2.build),
    "qwen2_5_vl": Family(
        *("chat", PICTURES, qwen2_5_vl.read, qwen2_5_vl.build, unused.DECODER),
        tower=qwen2_5_vl.build_tower,
        standard=False,
    ),
    "qwen2_moe": _sparse(qwen2_moe.read, qwen2_moe.build),
    "qwen3": _dense(qwen3.read, qwen3.build),
    "qwen3_5": _recurrent_seeing(
        *(qwen3_5.read_with_images, qwen3_5.build_with_images),
        *(qwen3_5.read_words, qwen3_5.build),
    ),
    "qwen3_5_moe": _recurrent_seeing(
        *(qwen3_5_moe.read_with_images, qwen3_5_moe.build_with_images),
        *(qwen3_5_moe.read_words, qwen3_5_moe.build),
        experts=True,
    ),
    "qwen3_5_moe_text": _recurrent(qwen3_5_moe.read, qwen3_5_moe.build, experts=True),
    "qwen3_5_text": _recurrent(qwen3_5.read, qwen3_5.build),
    "qwen3_moe": _sparse(qwen3_moe.read, qwen3_moe.build),
    "qwen3_next": _recurrent(qwen3_next.read, qwen3_next.build, experts=True),
    "qwen3_vl": Family(
        *("chat", PICTURES, qwen3_vl.read, qwen3_vl.build, unused.DECODER),
        tower=qwen3_vl.build_tower,
        standard=False,
    ),
    "qwen3_vl_moe": Family(
        *("chat", SPARSE_PICTURES, qwen3_vl_moe.read, qwen3_vl_moe.build, unused.DECODER),
        tower=qwen3_vl.build_tower,
        standard=False,
    ),
    "qwen4_exp": _by_processor(qwen4_exp.read_words),
    "qwen4_exp_text": _by_processor(qwen4_exp.read),
    "roberta": _BERT,
    "seed_oss": _dense(seed_oss.read, seed_oss.build),
    "smollm3": _dense(smollm3.read, smollm3.build),
    "xlm-roberta": _BERT,
}

_FEWEST_OF_EMBEDDINGGEMMA = 128
"""Numbers that its vectors may be cut to, says its card."""

FOR_A_PURPOSE: Mapping[tuple[str, Kind], Family] = {
    ("bert", "rerank"): _CROSS_ENCODER,
    ("mpnet", "rerank"): _CROSS_ENCODER,
    ("roberta", "rerank"): _CROSS_ENCODER,
    ("xlm-roberta", "rerank"): _CROSS_ENCODER,
    ("gte", "rerank"): Family(
        *("rerank", ENCODER, rotary_bert.read_gte_reranker, rotary_bert.build_reranker),
        unused.NONE,
    ),
    ("gemma3_text", "embedding"): Family(
        *("embedding", ENCODER),
        partial(
            decoder_embedder.read_whole,
            read=gemma3.read_both_ways,
            fewest=_FEWEST_OF_EMBEDDINGGEMMA,
        ),
        partial(decoder_embedder.build_whole, build=gemma3.build),
        unused.DECODER,
    ),
    ("mistral", "embedding"): _embedder("Mistral", mistral.read, mistral.build),
    ("qwen2", "embedding"): _embedder("Qwen2", qwen2.read, qwen2.build),
    ("modernbert", "rerank"): Family(
        "rerank", ENCODER, modernbert.read_reranker, modernbert.build_reranker, unused.NONE
    ),
    ("qwen3", "embedding"): Family(
        "embedding",
        ENCODER,
        qwen3_encoder.read_embedder,
        qwen3_encoder.build_embedder,
        unused.DECODER,
    ),
    ("qwen3", "rerank"): Family(
        "rerank",
        ENCODER,
        qwen3_encoder.read_reranker,
        qwen3_encoder.build_reranker,
        unused.DECODER,
    ),
}
"""Checkpoints of the same architecture that are published for something else."""
