"""Kimi K2.5 and K2.6: DeepSeek-V3 as one part of a checkpoint that sees images and films.

The language model is built and the rest is left out, as of Gemma 3. As published, experts alone are
quantized. Reference: Kimi K2.5 (2026), `Kimi_K25ForConditionalGeneration`.
"""

from __future__ import annotations

from dataclasses import replace

from installer.checkpoint.families import deepseek, parts
from installer.checkpoint.families.deepseek import LatentShape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.reader import Checkpoint

REFERENCE = "Kimi_K25ForConditionalGeneration"
"""What the reference library calls it; its publisher does without the line."""
_NAMES = ("KimiK25ForConditionalGeneration", REFERENCE)
_OF_IMAGES = (
    *("vision_config", "image_token_id", "video_token_id", "media_placeholder_token_id"),
    *("vision_start_token_id", "vision_end_token_id", "video_placeholder", "ignore_index"),
    *("use_unified_vision_chunk", "projection_hidden_size", "projection_layer_norm_eps"),
)
_OF_EVERY_MODEL = (
    *("add_cross_attention", "chunk_size_feed_forward", "id2label", "label2id", "is_decoder"),
    *("is_encoder_decoder", "output_attentions", "output_hidden_states", "pruned_heads"),
    *("return_dict", "tf_legacy_loss", "tie_encoder_decoder", "torchscript", "use_bfloat16"),
    *("diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size"),
    *("length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups"),
    *("num_beams", "num_return_sequences", "output_scores", "remove_invalid_values"),
    *("repetition_penalty", "return_dict_in_generate", "temperature", "top_k", "top_p"),
    *("typical_p", "auto_map"),
)
"""What an older library wrote of all models, and the code that it was to run, which nobody runs
here; how tokens are drawn generation_config.json says."""


def read(checkpoint: Checkpoint) -> LatentShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    text, tied = parts.read_part(checkpoint, _NAMES, _OF_IMAGES)
    text.ignore(*_OF_EVERY_MODEL)
    text.expect("model_type", "kimi_k2", "deepseek_v3")
    shape = deepseek.read_v3(text)
    return replace(shape, decoder=replace(shape.decoder, tied=tied))


def build(graph: GraphBuilder, shape: LatentShape, form: Form) -> None:
    """Write the graph in one of its forms, of the tensors by the names that there are."""
    deepseek.build_located(graph, shape, form)
