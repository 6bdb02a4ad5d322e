"""A published LoRA adapter, opened strictly: adapter_config.json and adapter_model.safetensors.

Owns what is understood of them (the file format of the PEFT library; Hu et al., LoRA, 2021;
Kalajdzievski, rank-stabilised LoRA, 2023). Every key and every tensor is read by the code that
knows its meaning or refused by name: DoRA, saved modules, embeddings, biases, ranks that differ
from layer to layer, and whatever else changes a model in another way than y + scale * B(A(x)).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches NumPy bfloat16, which safetensors hands out
import numpy as np
from safetensors import SafetensorError, safe_open

from appliance.bundle.consistency import MAX_RANK
from appliance.bundle.specs import AdapterTarget
from appliance.errors import CheckpointError
from installer.checkpoint.quantize import Float32
from installer.checkpoint.settings import Settings

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

_MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
_FLOATS = frozenset({"F32", "F16", "BF16"})
_LARGEST = 65504.0
_TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj\."
    r"lora_(A|B)\.weight"
)
_TARGETS = frozenset(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin training that leave the base as it was."""
_ALPHA = 8.0
"""The library's default of `lora_alpha`."""
_HARMLESS = frozenset(
    {
        *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode"),
        *(
            "auto_mapping",
            "lora_dropout",
            "peft_version",
            "megatron_core",
            "layers_pattern",
            "eva_config",
        ),
    }
)
"""Keys that name things, steer training, or say how the library loads itself."""
_ABSENT = (
    *("modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern"),
    *("trainable_token_indices", "layer_replication", "alora_invocation_tokens"),
    *("exclude_modules", "target_parameters", "megatron_config", "loftq_config", "corda_config"),
    *("lora_ga_config", "arrow_config"),
)
"""Keys that must be empty: what they ask for, no adapter here has."""
_FALSE = ("fan_in_fan_out", "use_dora", "use_qalora", "lora_bias", "ensure_weight_tying")


@dataclass(frozen=True, slots=True)
class Lora:
    """The numbers of an adapter; `scale` is what its products are multiplied with."""

    rank: int
    scale: float


class AdapterCheckpoint:
    """The files of one adapter.

    Attributes:
        lora: what the configuration says.
        named: the targets that it names; empty if it names them in another way.
    """

    def __init__(self, directory: Path) -> None:
        """Open `directory`. Raises CheckpointError."""
        self.directory = directory
        self._read: set[str] = set()
        document = self._document(CONFIG)
        self.lora = _lora(config := Settings(document, CONFIG))
        self.named = _named(document.get("target_modules"))
        config.ignore("target_modules")
        config.finish(_HARMLESS)
        if not self.has(WEIGHTS):
            raise _no_weights(pickled=self.has(PICKLE))
        self._read.add(WEIGHTS)
        self._shapes = dict(self._headers())

    def has(self, name: str) -> bool:
        return (self.directory / name).is_file()

    def text(self, name: str) -> str:
        """The whole of a small text file. Raises CheckpointError."""
        self._read.add(name)
        try:
            path = self.directory / name
            if path.stat().st_size > _MAX_DOCUMENT_BYTES:
                raise CheckpointError(f"{name} is larger than {_MAX_DOCUMENT_BYTES} bytes")
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{name} cannot be read: {error}") from error

    def size(self) -> int:
        """Bytes of the files read so far."""
        return sum((self.directory / name).stat().st_size for name in self._read)

    def digest(self) -> str:
        """SHA-256 over the files read so far: for each, its path, a NUL, its own SHA-256."""
        outer = hashlib.sha256()
        for name in sorted(self._read):
            with (self.directory / name).open("rb") as file:
                inner = hashlib.file_digest(file, "sha256")
            outer.update(name.encode("utf-8") + b"\0" + inner.digest())
        return outer.hexdigest()

    def targets(self, known: tuple[AdapterTarget, ...], layers: int) -> tuple[AdapterTarget, ...]:
        """Those of a base's targets that the adapter changes, in each of the base's layers.

        Raises CheckpointError for a tensor that has no place in the base, or not its shape.
        """
        there = {match[2] for match in map(_TENSOR.fullmatch, self._shapes) if match}
        found = tuple(target for target in known if target.name in there)
        wanted = dict(self._expected(found, layers))
        for name in sorted(self._shapes.keys() | wanted.keys()):
            if name not in wanted:
                raise CheckpointError(
                    f"the tensor {name} has no place in the base's layers",
                    hint="adapters change q, k, v, o, gate, up and down in every layer of a base, "
                    "and nothing else",
                )
            if name not in self._shapes:
                raise CheckpointError(
                    f"{WEIGHTS} has no tensor {name}",
                    hint="an adapter changes a target in all layers of its base or in none",
                )
            if self._shapes[name] != wanted[name]:
                raise CheckpointError(
                    f"{name} has the shape {list(self._shapes[name])}; "
                    f"rank and base mean {list(wanted[name])}",
                    hint="the adapter was trained on another model",
                )
        missing = sorted(self.named - there)
        if missing or not found:
            raise CheckpointError(
                f"{WEIGHTS} has nothing for {', '.join(missing) or 'any layer'}",
                hint=f"{CONFIG} belongs to other weights",
            )
        return found

    def layer(self, number: int, targets: tuple[AdapterTarget, ...]) -> Iterator[Float32]:
        """A layer's down [rank, inner] and up [rank, outer] of each target; the scale is in up."""
        with self._open() as file:
            for target in targets:
                down, up = _names(number, target)
                yield _checked(down, file.get_tensor(down))
                ups = _checked(up, file.get_tensor(up)).T
                yield _checked(up, ups * np.float32(self.lora.scale))

    def _expected(
        self, targets: tuple[AdapterTarget, ...], layers: int
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each tensor that an adapter of these targets has."""
        for target in targets:
            for layer in range(layers):
                down, up = _names(layer, target)
                yield down, (self.lora.rank, target.inner)
                yield up, (target.outer, self.lora.rank)

    def _headers(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        with self._open() as opened:
            for name in opened.keys():  # noqa: SIM118  # not a mapping
                tensor = opened.get_slice(name)
                if tensor.get_dtype() not in _FLOATS:
                    raise CheckpointError(
                        f"{name} has the element type {tensor.get_dtype()}",
                        hint="use an adapter in bfloat16, float16 or float32",
                    )
                yield name, tuple(tensor.get_shape())

    def _open(self) -> Any:  # noqa: ANN401  # the library has no types
        try:
            return safe_open(self.directory / WEIGHTS, framework="np")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{WEIGHTS} is not a safetensors file: {error}") from error

    def _document(self, name: str) -> dict[str, object]:
        try:
            document = json.loads(self.text(name))
        except (json.JSONDecodeError, RecursionError) as error:
            raise CheckpointError(f"{name} is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise CheckpointError(f"{name} is not a JSON object")
        return document


def is_adapter(directory: Path) -> bool:
    """Whether `directory` holds an adapter, and not a model."""
    return (directory / CONFIG).is_file()


def _lora(config: Settings) -> Lora:
    config.expect("peft_type", "LORA")
    config.expect("task_type", "CAUSAL_LM")
    config.expect("bias", "none")
    for key in _FALSE:
        config.expect(key, False)
    for key in _ABSENT:
        config.expect(key, [], {}, "")
    config.ignore("qalora_group_size")
    config.expect("init_lora_weights", *_STARTS)
    rank = config.integer("r")
    if rank > MAX_RANK:
        raise CheckpointError(
            f"{CONFIG}: r = {rank} is more than {MAX_RANK}",
            hint="merge it into its base: it is hardly smaller",
        )
    root = math.sqrt(rank) if config.flag("use_rslora", False) else rank
    return Lora(rank, config.number("lora_alpha", _ALPHA) / root)


def _named(modules: object) -> frozenset[str]:
    """The targets in a list of modules; none if that is a pattern, or is not given.

    Raises CheckpointError for a module that adapters do not change here.
    """
    if not isinstance(modules, list):
        return frozenset()
    names = {str(module).rpartition(".")[2] for module in modules}
    for name in sorted(names - _TARGETS):
        raise CheckpointError(
            f"{CONFIG}: target_modules names {name!r}, which adapters do not change here",
            hint=f"they change {', '.join(sorted(_TARGETS))}",
        )
    return frozenset(name.removesuffix("_proj") for name in names)


def _names(layer: int, target: AdapterTarget) -> tuple[str, str]:
    """The tensors of a target: A [rank, inner] and B [outer, rank]."""
    block = "self_attn" if target.name in "qkvo" else "mlp"
    at = f"base_model.model.model.layers.{layer}.{block}.{target.name}_proj"
    return f"{at}.lora_A.weight", f"{at}.lora_B.weight"


def _checked(name: str, values: np.ndarray[Any, Any]) -> Float32:
    floats = np.ascontiguousarray(values, dtype=np.float32)
    if not (np.isfinite(floats).all() and np.abs(floats).max() <= _LARGEST):
        raise CheckpointError(f"{name} has values that are not finite, or beyond {_LARGEST:.0f}")
    return floats


def _no_weights(*, pickled: bool) -> CheckpointError:
    if pickled:
        return CheckpointError(
            f"the weights are pickled ({PICKLE}): loading them could run code",
            hint="convert them to safetensors on a machine you can spare",
        )
    return CheckpointError(f"the checkpoint has no {WEIGHTS}", hint="the download is incomplete")
