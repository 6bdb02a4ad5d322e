"""MiMo: Qwen2's layers under another name. Its head: test_head_parity.py."""

from __future__ import annotations

from tests.checkpoint.families import Model
from tests.fakes.checkpoints import write_mimo

MODELS = {"mimo": Model(write_mimo)}
