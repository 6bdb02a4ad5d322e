"""A node with a base in two grades and four adapters. All real parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fakes.adapters import write_adapter, write_merged
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode

NAME = "adapter-node"
"""For `build_once`: tests of several packages share it."""
BASE = "base"
GRADES = {"1.0": "fp32", "2.0": "w8a8"}
"""Versions of the base, made from one checkpoint."""
ADAPTERS: Mapping[str, dict[str, Any]] = {
    "all": {"rank": 4},
    "attention": {"rank": 8, "targets": ("q", "v"), "alpha": 16.0},
    "stable": {"rank": 3, "rslora": True, "targets": ("k", "o", "down")},
    "half": {"rank": 5, "dtype": "bfloat16", "targets": ("gate", "up", "o")},
}


def build_adapter_node(root: Path) -> None:
    """`base` 1.0 and the adapters `all` and `half` are active; `merged-NAME` are checkpoints."""
    node = EngineNode(root)
    checkpoint = write_qwen3(root / "checkpoint")
    for version, grade in GRADES.items():
        first = version == "1.0"
        stored = node.add(
            checkpoint, name=BASE, version=version, precision=grade, adapters=True, activate=first
        )
    for number, (name, numbers) in enumerate(ADAPTERS.items()):
        adapter = write_adapter(root / f"lora-{name}", checkpoint, seed=number, **numbers)
        write_merged(root / f"merged-{name}", checkpoint, adapter)
        node.add_adapter(adapter, stored, name=name, activate=name in {"all", "half"})
