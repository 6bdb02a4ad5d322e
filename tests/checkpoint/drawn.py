"""Checkpoints of any family that the reference library knows, from a config.json alone.

Names and shapes of the tensors are the reference model's own, written as it writes them, which is
as they are published. Values are drawn with the scale of trained ones, since in smaller ones errors
would hide: attention is far from uniform, gains differ from one, biases from zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.checkpoint.families import Model
from tests.fakes.checkpoints import write_chat_files

TINY: Mapping[str, object] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "initializer_range": 0.02,
}
"""What most decoders have in their config.json."""


_TRAINED = ("correction_bias", "rotary_emb.alpha")
"""Buffers that are not made but published."""


def draw_checkpoint(
    directory: Path,
    config: Mapping[str, object],
    *,
    seed: int = 0,
    model: Any = AutoModelForCausalLM,
) -> Path:
    """Write a checkpoint with this config.json, its weights drawn from `seed`.

    `model` is the library's class that the published weights belong to.
    """
    directory.mkdir(parents=True)
    # The library writes into what it is given.
    options: dict[str, Any] = copy.deepcopy(dict(config))
    reference = model.from_config(AutoConfig.for_model(**options))
    _draw(reference, seed)
    reference.save_pretrained(directory)
    write_chat_files(directory, dict(config))
    return directory


def drawn_model(
    *configs: Mapping[str, object],
    main: bool = False,
    experts: bool = False,
    recurrent: bool = False,
    uneven: bool = False,
    floats: bool = False,
    by_processor: bool = False,
    blind: bool = False,
    model: Any = AutoModelForCausalLM,
    seed: int = 0,
) -> Model:
    """A model of the tests from its config.json alone, of which later parts go before earlier.

    `model` is the library's class that the published weights belong to. Another `seed` is for one
    in which roundings fall the other way more than in most.
    """
    config = {key: value for part in configs for key, value in part.items()}

    def write(directory: Path) -> Path:
        return draw_checkpoint(directory, config, model=model, seed=seed)

    return Model(write, main, experts, recurrent, uneven, floats, by_processor, blind)


def _draw(reference: torch.nn.Module, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        trained = (pair for pair in reference.named_buffers() if pair[0].endswith(_TRAINED))
        for module in reference.modules():
            if hasattr(module, "tid2eid"):  # each token's experts, none of them twice
                table = module.tid2eid
                order = torch.rand(len(table), module.num_experts, generator=random).argsort(-1)
                table.copy_(order[:, : table.shape[1]])
        for name, values in chain(reference.named_parameters(), trained):
            drawn = torch.randn(values.shape, generator=random)
            if values.ndim > 1:
                embedded = "embed" in name
                values.copy_(drawn * (0.2 if embedded else 1.5 / math.sqrt(values.shape[-1])))
            elif name.endswith("softmax_scaling.bias"):  # what queries are multiplied by
                values.copy_(1 + drawn * 0.2)
            elif name.endswith("bias"):
                values.copy_(drawn * 0.2)
            elif name.endswith("sinks"):
                values.copy_(drawn)
            elif name.endswith("A_log"):  # which the library draws anew for each model
                values.copy_((drawn.abs() + 0.1).log())
            else:
                values.add_(drawn * 0.1)
