"""Nomic Embed: the blocks of rotary_bert.py, in the publisher's words or in the reference's.

Texts are at most as long as those of the training, so that no angle is rescaled by their length.
Refuses experts. Reference: Nussbaum et al., Nomic Embed (2024), `NomicBertModel`.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.errors import CheckpointError
from installer.checkpoint.families.bert import HARMLESS_KEYS
from installer.checkpoint.families.rotary_bert import (
    Parts,
    RotaryBertShape,
    expect_all,
    read_encoder,
)
from installer.checkpoint.graph.pooling import EncoderShape
from installer.checkpoint.reader import Checkpoint

_PARTS = Parts(
    layers="encoder.layers",
    embedding_norm="emb_ln",
    heads="attn.Wqkv",
    output="attn.out_proj",
    up="mlp.fc11",
    gate="mlp.fc12",
    down="mlp.fc2",
    norms=("norm1", "norm2"),
    bias=False,
    activation="silu",
    types=2,
)
_WORDS: Mapping[str, str] = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}
"""What the publisher's config.json calls what the reference's calls otherwise."""
_EXPECTED: Mapping[str, object] = {
    "activation_function": "swiglu",
    "causal": False,
    "hidden_act": "silu",
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "use_rms_norm": False,
}
_HARMLESS = HARMLESS_KEYS | {
    *("attn_pdrop", "embd_pdrop", "resid_pdrop", "dense_seq_output", "fused_bias_fc"),
    *("fused_dropout_add_ln", "pad_vocab_size_multiple", "reorder_and_upcast_attn"),
    *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type"),
    *("summary_use_proj", "use_flash_attn", "use_xentropy", "id2label", "label2id"),
}


def read(checkpoint: Checkpoint) -> EncoderShape[RotaryBertShape]:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    config = checkpoint.with_config(restated(checkpoint.config)).settings("config.json")
    config.expect("architectures", ["NomicBertModel"])
    expect_all(config, _EXPECTED)
    config.expect("rotary_emb_scale_base")
    # It rescales angles of texts that are longer than those of the training, which none is here.
    if "max_trained_positions" not in config:
        config.expect("rotary_scaling_factor")
    config.ignore("rotary_scaling_factor", "max_trained_positions", "n_positions")
    shape = read_encoder(checkpoint, config, _PARTS, theta=1000.0)
    config.finish(_HARMLESS)
    return shape


def restated(config: Mapping[str, object]) -> dict[str, object]:
    """config.json in the words of the reference. Raises CheckpointError if it says two things."""
    made = {key: value for key, value in config.items() if key not in _WORDS}
    for older, newer in _WORDS.items():
        said = config.get(older)
        if said is None:
            continue
        if made.get(newer) not in (None, said):
            raise CheckpointError(f"config.json: {older} = {said!r}, but {newer} = {made[newer]!r}")
        made[newer] = said
    if made.get("max_position_embeddings") is None and "n_positions" in made:
        made["max_position_embeddings"] = made.get("max_trained_positions") or made["n_positions"]
    return made
