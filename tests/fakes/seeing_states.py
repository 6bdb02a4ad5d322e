"""Small checkpoints of Qwen3.5 that read images: layers with a running state behind a tower.

Owns their configuration and chat template; weights are drawn under the reference's own names, and
the files of what reads images are those of vision_checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText

from tests.checkpoint.drawn import draw_checkpoint
from tests.checkpoint.families.qwen3_5 import QWEN3_5, QWEN3_5_MOE
from tests.fakes.vision_checkpoints import IDS, PROCESSOR, write_seeing_files

TEMPLATE = """\
{%- set shown = namespace(count=0) -%}
{%- macro render(content, told) -%}
{%- if content is string -%}{{- content -}}
{%- else -%}
{%- for item in content -%}
{%- if 'image' in item or 'image_url' in item or item.type == 'image' -%}
{%- if told -%}{{- raise_exception('System message cannot contain images.') -}}{%- endif -%}
{%- set shown.count = shown.count + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' ~ shown.count ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif 'text' in item -%}{{- item.text -}}
{%- else -%}{{- raise_exception('Unexpected item type in content.') -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{{- render(message.content, message.role == 'system') | trim -}}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""In the publisher's manner: images in a macro that counts them, and none in a system message."""
_SIGHT = {
    "depth": 2,
    "hidden_size": 48,
    "hidden_act": "gelu_pytorch_tanh",
    "num_heads": 3,
    "in_channels": 3,
    "intermediate_size": 96,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [],
}


def write_qwen3_5(directory: Path, *, seed: int = 0, tied: bool = True) -> Path:
    """Write a dense checkpoint into `directory` and return it."""
    return _write(directory, "qwen3_5", "Qwen3_5", QWEN3_5, seed, tied)


def write_qwen3_5_moe(directory: Path, *, seed: int = 5, tied: bool = False) -> Path:
    """The same with experts, beside one for all.

    By default weights of which no rounding changes which experts a token goes to in these tests,
    after which a random model would be another one.
    """
    return _write(directory, "qwen3_5_moe", "Qwen3_5Moe", QWEN3_5_MOE, seed, tied)


def _write(
    directory: Path, kind: str, name: str, words: Mapping[str, Any], seed: int, tied: bool
) -> Path:
    text = {key: value for key, value in words.items() if key != "architectures"}
    text |= {"tie_word_embeddings": tied, "max_position_embeddings": 1024}
    config = {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": kind,
        "text_config": text,
        "vision_config": {**_SIGHT, "model_type": kind},
        "tie_word_embeddings": tied,
        **IDS,
    }
    told = {**config, "vision_config": {**_SIGHT, "model_type": f"{kind}_vision"}}
    draw_checkpoint(directory, told, seed=seed, model=AutoModelForImageTextToText)
    write_seeing_files(directory, config, text, PROCESSOR, TEMPLATE)
    return directory
