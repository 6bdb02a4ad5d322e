"""A small checkpoint of Muse Glimmer that reads images, as its publisher lays it out.

Owns its configuration, its chat template's manner with images and its processor's file; weights are
drawn under the reference's own names.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoModelForImageTextToText

from tests.checkpoint.drawn import draw_checkpoint
from tests.checkpoint.families.muse import GLIMMER, GLIMMER_TEXT, SIGHT
from tests.fakes.vision_checkpoints import IDS, write_seeing_files

SPECIAL = ("<|image_start|>", "<|image_end|>", "<|patch|>", "<|video|>")
"""The last tokens; the template writes the third for an image, the processor those around it."""
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type in ('image', 'image_url') -%}{{- '<|patch|>' -}}
{%- elif 'text' in part -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "MuseGlimmerImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_tokens": 256,
    "merge_size": 2,
    "patch_size": 8,
    "resample": 1,
    "rescale_factor": 0.00392156862745098,
    "temporal_patch_size": 2,
}


def write_muse_glimmer(directory: Path, seed: int = 2) -> Path:
    """Write it into `directory`, with windows that images are larger than, and return it."""
    text = {**GLIMMER_TEXT, "max_position_embeddings": 1024}
    sight = {**SIGHT, "model_type": "muse_glimmer_vision", "patch_size": 8, "hidden_size": 48}
    sight |= {"num_attention_heads": 3, "num_hidden_layers": 3}
    sight["layer_types"] = ["window_attention", "full_attention", "window_attention"]
    tokens = {name: IDS[name] for name in ("image_token_id", "video_token_id")}
    config = {**GLIMMER, **tokens, "out_hidden_size": 192, "text_config": text}
    config["vision_config"] = sight
    draw_checkpoint(directory, config, seed=seed, model=AutoModelForImageTextToText)
    write_seeing_files(directory, config, text, PROCESSOR, TEMPLATE, SPECIAL)
    (directory / "preprocessor_config.json").unlink()
    processor = {"image_processor": PROCESSOR, "processor_class": "MuseGlimmerProcessor"}
    (directory / "processor_config.json").write_text(json.dumps(processor))
    return directory
