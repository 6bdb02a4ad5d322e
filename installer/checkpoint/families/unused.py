"""Names of tensors that checkpoints may have and that have no place in a graph.

Owns what is left out of each family on purpose. All other tensors without a place are refused.
"""

from __future__ import annotations

import re

DECODER = re.compile(r"lm_head\.weight|.*\.rotary_emb\.inv_freq")
# Heads that draft several tokens at once; the engine guesses in its own way.
MINIMAX = re.compile(rf"{DECODER.pattern}|model\.mtp\..*")
NEMOTRON = re.compile(rf"{DECODER.pattern}|mtp\..*")
ERNIE = re.compile(rf"{DECODER.pattern}|model\.mtp_[a-z_]+\..*")
# The pooler is a head for BERT's pre-training task; sentence encoders do not run it.
BERT = re.compile(r"embeddings\.position_ids|pooler\.dense\.(weight|bias)")
CROSS_ENCODER = re.compile(
    r"(bert|mpnet|roberta)\.embeddings\.position_ids"
    r"|(mpnet|roberta)\.pooler\.dense\.(weight|bias)"
)

# What pre-training predicts words with.
MODERNBERT = re.compile(r"head\.(dense|norm)\.weight|decoder\.(weight|bias)")
NONE = re.compile(r"(?!)")
# What sees and hears beside a text model.
OTHERS = re.compile(r"(vision_tower|embed_vision|audio_tower|embed_audio)\..*")
GEMMA4 = re.compile(
    r"(model\.)?(vision_tower|vision_embedder|embed_vision|audio_tower|embed_audio)\..*"
    rf"|{DECODER.pattern}"
)
# What sees images in front of a language model that is built without it.
SIGHT = re.compile(
    r"(model\.)?(vision_tower|multi_modal_projector)\..*|(language_model\.)?lm_head\.weight"
)
KIMI_SIGHT = re.compile(rf"{SIGHT.pattern}|(model\.)?mm_projector\..*")
LLAMA4 = re.compile(rf"{SIGHT.pattern}|(model\.)?vision_model\..*|.*\.rotary_emb\.inv_freq")
LARGE4 = re.compile(
    r"(vision_encoder|vision_language_adapter|patch_merger|pre_mm_projector_norm|mtp_dspark)\..*"
)
# What sees and hears in front of a Muse.
MUSE = re.compile(r"model\.(vision_tower|vision_adapter|vision_projection|audio_tower)\..*")
# A head that predicts further tokens; and what sees, of a language model that is built alone.
QWEN35 = re.compile(rf"{DECODER.pattern}|mtp\..*")
QWEN35_SIGHT = re.compile(rf"{QWEN35.pattern}|model\.visual\..*")
# What sees images, in MiniMax's words, and what predicts further tokens.
MINIMAX3 = re.compile(
    r"(vision_tower|multi_modal_projector|patch_merge_mlp)\..*|language_model\.lm_head\.weight"
    r"|language_model\.model\.mtp\..*"
)
