"""Tiny checkpoints of the model families, one module for each: `MODELS` of all are merged here.

To add a family, add a module with `MODELS`: name -> a `Model`, made by a function that writes the
checkpoint into the directory it is given (`tests.checkpoint.drawn` needs only its config.json).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Model:
    """Attributes:
    write: makes the checkpoint in a directory that is not there yet, and returns it.
    main: whether it differs from others in more than numbers: the parity table has cells for int8,
        int4 and w8a8, and its graphs for CUDA and TensorRT are tested. Once a family is enough.
    experts: whether tokens choose among experts: there is no graph for TensorRT, and a rounding
        may change a choice, so that test_experts.py has the tests of the graph for CUDA.
    recurrent: whether layers keep a running state: there is no graph for TensorRT.
    uneven: whether layers differ in their heads: there is no graph for TensorRT.
    floats: whether its cache is never of 8 bits.
    by_processor: whether there are no graphs for a GPU.
    blind: whether it sees, but for the grades that are tested here, `w8a8` and `w4a8`; the others
        are tested in tests/vision.
    """

    write: Callable[[Path], Path]
    main: bool = False
    experts: bool = False
    recurrent: bool = False
    uneven: bool = False
    floats: bool = False
    by_processor: bool = False
    blind: bool = False

    @property
    def on_gpus(self) -> bool:
        """Whether it has graphs for a GPU."""
        return not self.by_processor


def find_models() -> dict[str, Model]:
    """All modules' `MODELS`, in the order of their names."""
    found: dict[str, Model] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        models = importlib.import_module(f"{__name__}.{module.name}").MODELS
        assert not found.keys() & models.keys(), "every model has a name of its own"
        found |= models
    return found
