"""Writes the checkpoint directory as publishers of open models lay it out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM

from guide_recipe.chat import END, END_OF_TEXT, TEMPLATE
from guide_recipe.sources import GUIDE

LICENSE = GUIDE.parent.parent / "LICENSE"


def publish(model: Qwen3ForCausalLM, tokenizer: Tokenizer, directory: Path) -> None:
    """Write weights (bf16), configuration, tokenizer, template and licence into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.config.max_position_embeddings,
            "eos_token": END,
            "pad_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
    )
    _write_json(
        directory / "generation_config.json",
        {
            "do_sample": False,
            "eos_token_id": [tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)],
            "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
        },
    )
    shutil.copyfile(LICENSE, directory / "LICENSE")


def _write_json(path: Path, document: dict[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
