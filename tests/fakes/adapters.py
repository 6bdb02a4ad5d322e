"""Real LoRA checkpoints as the PEFT library lays them out, and models with them merged in.

Both halves are written from the published format and formula alone; nothing of the builder is used.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

ALL = ("q", "k", "v", "o", "gate", "up", "down")
_DTYPES: Mapping[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def write_adapter(
    directory: Path,
    base: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    alpha: float = 8.0,
    rslora: bool = False,
    targets: Sequence[str] = ALL,
    dtype: str = "float32",
    **config: object,
) -> Path:
    """An adapter of the checkpoint `base`; `config` adds keys to adapter_config.json.

    Large enough that every target changes the logits.
    """
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (outer, inner) in _layers(base, targets).items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        down = random.standard_normal((rank, inner)) / math.sqrt(inner)
        up = random.standard_normal((outer, rank)) * 0.2
        tensors[f"{stem}.lora_A.weight"] = down.astype(_DTYPES[dtype])
        tensors[f"{stem}.lora_B.weight"] = up.astype(_DTYPES[dtype])
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    document = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.name),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "r": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": [f"{name}_proj" for name in targets],
        "use_dora": False,
        "use_rslora": rslora,
    }
    (directory / "adapter_config.json").write_text(json.dumps(document | config))
    (directory / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    return directory


def write_merged(directory: Path, base: Path, adapter: Path) -> Path:
    """A copy of the checkpoint `base` with W + scale * B A in place of each changed W."""
    shutil.copytree(base, directory)
    weights: dict[str, npt.NDArray[Any]] = load_file(directory / "model.safetensors")
    tensors: dict[str, npt.NDArray[Any]] = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            up = tensors[f"{stem}.lora_B.weight"].astype(np.float64)
            weight = f"{stem.removeprefix('base_model.model.')}.weight"
            merged = weights[weight].astype(np.float64) + scale * up @ down.astype(np.float64)
            weights[weight] = merged.astype(np.float32)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def _layers(base: Path, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Name and shape of the base's matrices that these targets are."""
    suffixes = tuple(f".{name}_proj.weight" for name in targets)
    weights = load_file(base / "model.safetensors")
    return {n: w.shape for n, w in sorted(weights.items()) if n.endswith(suffixes)}
