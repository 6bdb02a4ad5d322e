"""EuroBERT: Llama's blocks, in both directions. Built as an embedder.

Reference: Boizard et al., EuroBERT (2025), `EuroBertModel`.
"""

from __future__ import annotations

from installer.checkpoint.graph import decoder_shape
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.reader import Checkpoint

_HARMLESS = decoder_shape.HARMLESS_KEYS | {
    *("mask_token_id", "bos_token", "eos_token", "pad_token", "mask_token"),
    *("pretraining_tp", "hidden_dropout", "classifier_pooling", "clf_pooling"),
}
"""Besides: names of tokens, training, and heads that classify."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["EuroBertModel"], ["EuroBertForMaskedLM"])
    for bias in ("attention_bias", "mlp_bias"):
        config.expect(bias, False)
    shape = decoder_shape.read_decoder(config)
    config.finish(_HARMLESS)
    return shape
