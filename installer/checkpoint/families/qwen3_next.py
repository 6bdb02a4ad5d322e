"""Qwen3-Next: Qwen3.5's layers with experts, whose projections are stored together.

The head that predicts further tokens is left out. Reference: `Qwen3NextForCausalLM` (2025).
"""

from __future__ import annotations

from installer.checkpoint.families import qwen2_moe, qwen3_5, qwen3_5_moe
from installer.checkpoint.graph import gated_delta
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.reader import Checkpoint


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["Qwen3NextForCausalLM"])
    return qwen3_5_moe.read_mixed(config, tied=False)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the graph in one of its forms."""
    project = gated_delta.project_together
    qwen3_5.build_hybrid(graph, shape, form, project, qwen2_moe.feed_forward)
