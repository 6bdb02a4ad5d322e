"""Checkpoints as tools for quantization publish them, written from plain ones.

Owns the layouts as their formats say them, in plain loops over the bits: nothing here is shared
with the reader. Each packer rounds a matrix and gives what is stored of it and, for comparison,
the numbers that this means.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

Array = npt.NDArray[Any]
Tensors = dict[str, Array]


class Packer(Protocol):
    """One method."""

    config: Mapping[str, object]
    """The quantization_config of the checkpoint."""

    def pack(self, name: str, weight: Array, random: np.random.Generator) -> tuple[Tensors, Array]:
        """`name`.weight [outer, inner] -> what is stored of it, and what that means."""
        ...


def write_packed(
    plain: Path, packed: Path, packer: Packer, *, is_packed: Callable[[str], bool] | None = None
) -> Path:
    """Write what `plain` is in `packer`'s layout, and beside it as plain numbers; the latter.

    Both have the same values. Embeddings and output tables stay as they are.
    """
    is_packed = is_packed or _is_packed
    twin = packed.with_name(f"{packed.name}-twin")
    for target in (packed, twin):
        shutil.copytree(plain, target)
    random = np.random.default_rng(5)
    stored: Tensors = {}
    meant: Tensors = {}
    for name, values in load_file(plain / "model.safetensors").items():
        if values.ndim == 2 and is_packed(name):
            tensors, numbers = packer.pack(name.removesuffix(".weight"), values, random)
            stored |= tensors
            meant[name] = numbers
        elif values.ndim == 3 and isinstance(packer, Fp8):
            tensors, meant[name] = packer.pack_stack(name, values, random)
            stored |= tensors
        else:
            stored[name] = meant[name] = values
    for target, tensors in ((packed, stored), (twin, meant)):
        save_file(
            {name: _torch(values) for name, values in tensors.items()},
            target / "model.safetensors",
            {"format": "pt"},
        )
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = dict(packer.config)
    (packed / "config.json").write_text(json.dumps(config))
    return twin


def _is_packed(name: str) -> bool:
    """What weighs an index's heads is published plain, beside its matrices."""
    if name.endswith((".wk.weight", ".wq_b.weight")):
        return True
    return "proj" in name and "weights_proj" not in name


class Gptq:
    """AutoGPTQ's layout; with `shuffled`, columns belong to groups in no order (desc_act)."""

    def __init__(
        self, *, bits: int, group: int, symmetric: bool, version: str = "gptq", shuffled: bool
    ) -> None:
        self._bits, self._group, self._symmetric = bits, group, symmetric
        self._shift = 1 if version == "gptq" else 0
        self._shuffled = shuffled
        self.config: Mapping[str, object] = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group,
            "sym": symmetric,
            "desc_act": shuffled,
            "static_groups": False,
            "damp_percent": 0.01,
            "true_sequential": True,
            "lm_head": False,
            "checkpoint_format": version,
        }

    def pack(self, name: str, weight: Array, random: np.random.Generator) -> tuple[Tensors, Array]:
        """`name`.weight [outer, inner] -> what is stored of it, and what that means."""
        inner = weight.shape[1]
        size = inner if self._group == -1 else self._group
        groups = np.arange(inner) // size
        if self._shuffled:
            groups = random.permutation(groups)
        integers, scales, zeros = _rounded(weight, groups, self._bits, self._symmetric)
        stored = {
            f"{name}.qweight": _words(integers.T, self._bits, axis=0),
            f"{name}.qzeros": _words(zeros.T - self._shift, self._bits, axis=1),
            f"{name}.scales": scales.T,
            f"{name}.g_idx": groups.astype(np.int32),
        }
        return stored, _meant(integers, scales, zeros, groups)


class Awq:
    """AutoAWQ's layout for `gemm`."""

    def __init__(self, *, group: int) -> None:
        self._group = group
        self.config: Mapping[str, object] = {
            "quant_method": "awq",
            "bits": 4,
            "group_size": group,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": None,
        }

    def pack(self, name: str, weight: Array, random: np.random.Generator) -> tuple[Tensors, Array]:
        """`name`.weight [outer, inner] -> what is stored of it, and what that means."""
        groups = np.arange(weight.shape[1]) // self._group
        integers, scales, zeros = _rounded(weight, groups, 4, symmetric=False)
        stored = {
            f"{name}.qweight": _words(_interleaved(integers.T), 4, axis=1),
            f"{name}.qzeros": _words(_interleaved(zeros.T), 4, axis=1),
            f"{name}.scales": scales.T,
        }
        return stored, _meant(integers, scales, zeros, groups)


class CompressedInts:
    """compressed-tensors' pack-quantized."""

    def __init__(self, *, bits: int, group: int, symmetric: bool = True) -> None:
        self._bits, self._group, self._symmetric = bits, group, symmetric
        weights = {
            "num_bits": bits,
            "type": "int",
            "strategy": "channel" if group == -1 else "group",
            "group_size": None if group == -1 else group,
            "symmetric": symmetric,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
            "observer": "minmax",
            "observer_kwargs": {},
        }
        self.config = _compressed("pack-quantized", weights, None)

    def pack(self, name: str, weight: Array, random: np.random.Generator) -> tuple[Tensors, Array]:
        """`name`.weight [outer, inner] -> what is stored of it, and what that means."""
        inner = weight.shape[1]
        groups = np.arange(inner) // (inner if self._group == -1 else self._group)
        integers, scales, zeros = _rounded(weight, groups, self._bits, self._symmetric)
        stored = {
            f"{name}.weight_packed": _words(integers, self._bits, axis=1),
            f"{name}.weight_scale": scales,
            f"{name}.weight_shape": np.array(weight.shape, np.int64),
        }
        if not self._symmetric:
            stored[f"{name}.weight_zero_point"] = _words(zeros, self._bits, axis=0)
        return stored, _meant(integers, scales, zeros, groups)


class Fp8:
    """8-bit floats with a scale for each square, as DeepSeek-V3 and Qwen3-FP8 are published."""

    suffix = "weight_scale_inv"

    def __init__(self, side: int = 32) -> None:
        self._side = side
        self.config: Mapping[str, object] = {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [side, side],
        }

    def pack(self, name: str, weight: Array, random: np.random.Generator) -> tuple[Tensors, Array]:
        """`name`.weight [outer, inner] -> what is stored of it, and what that means."""
        outer, inner = weight.shape
        high, wide = self._sides(outer, inner)
        scales = np.zeros((-(-outer // high), -(-inner // wide)), np.float32)
        stored = np.zeros(weight.shape, ml_dtypes.float8_e4m3fn)
        meant = np.zeros(weight.shape, np.float32)
        for row in range(scales.shape[0]):
            for column in range(scales.shape[1]):
                at = np.s_[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                scales[row, column] = np.abs(weight[at]).max() / 448
                stored[at] = (weight[at] / scales[row, column]).astype(stored.dtype)
                meant[at] = stored[at].astype(np.float32) * scales[row, column]
        return {f"{name}.weight": stored, f"{name}.{self.suffix}": scales}, meant

    def pack_stack(
        self, name: str, stack: Array, random: np.random.Generator
    ) -> tuple[Tensors, Array]:
        """`name` [experts, outer, inner] -> what is stored of it, and what that means."""
        packed = [self.pack("it", weight, random) for weight in stack]
        ends = {f"it.{self.suffix}": "scale_inv", "it.activation_scale": "activation_scale"}
        stored = {name: np.stack([tensors["it.weight"] for tensors, _ in packed])}
        for end in packed[0][0].keys() & ends.keys():
            values = np.stack([tensors[end] for tensors, _ in packed])
            scale = end.endswith(self.suffix) and values.ndim == 1
            stored[f"{name}_{ends[end]}"] = values[:, None, None] if scale else values
        return stored, np.stack([meant for _, meant in packed])

    def _sides(self, outer: int, inner: int) -> tuple[int, int]:
        return self._side, self._side


class Fp8Whole(Fp8):
    """8-bit floats with a scale for each matrix and one for what it is multiplied with, as
    Ministral 3 is published."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "dequantize": False,
            "modules_to_not_convert": ["model.vision_tower", "lm_head"],
            "weight_block_size": None,
        }

    def pack(self, name: str, weight: Array, random: np.random.Generator) -> tuple[Tensors, Array]:
        """`name`.weight [outer, inner] -> what is stored of it, and what that means."""
        stored, meant = super().pack(name, weight, random)
        scales = f"{name}.{self.suffix}"
        stored[scales] = stored[scales].reshape(())
        return {**stored, f"{name}.activation_scale": np.array(0.01, np.float32)}, meant

    def _sides(self, outer: int, inner: int) -> tuple[int, int]:
        return outer, inner


class DeepSeekV4(Fp8):
    """8-bit floats in squares, and experts in 4-bit floats, all with powers of two."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {**self.config, "scale_fmt": "ue8m0"}

    def pack(self, name: str, weight: Array, random: np.random.Generator) -> tuple[Tensors, Array]:
        """`name`.weight [outer, inner] -> what is stored of it, and what that means."""
        experts = ".experts." in name
        high, wide = (1, 32) if experts else self._sides(*weight.shape)
        most = 6 if experts else 448
        outer, inner = weight.shape
        exponents = np.zeros((-(-outer // high), -(-inner // wide)), np.uint8)
        rounded = np.zeros(weight.shape, np.float32)
        meant = np.zeros(weight.shape, np.float32)
        for row in range(exponents.shape[0]):
            for column in range(exponents.shape[1]):
                at = np.s_[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                power = math.ceil(math.log2(np.abs(weight[at]).max() / most))
                exponents[row, column] = power + 127
                scaled = weight[at] / 2.0**power
                rounded[at] = _to_four_bits(scaled) if experts else _to_eight_bits(scaled)
                meant[at] = rounded[at] * 2.0**power
        stored = _pairs(rounded) if experts else rounded.astype(ml_dtypes.float8_e4m3fn)
        scales = exponents.view(ml_dtypes.float8_e8m0fnu)
        return {f"{name}.weight": stored, f"{name}.scale": scales}, meant


_FOUR_BITS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def _to_four_bits(values: Array) -> Array:
    """The nearest of the 4-bit floats."""
    nearest = np.abs(np.abs(values)[..., None] - _FOUR_BITS).argmin(-1)
    rounded: Array = np.copysign(_FOUR_BITS[nearest], values)
    return rounded


def _to_eight_bits(values: Array) -> Array:
    return values.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def _pairs(values: Array) -> Array:
    """Two 4-bit floats in a byte, the first in its lower half."""
    codes = np.abs(np.abs(values)[..., None] - _FOUR_BITS).argmin(-1) + 8 * np.signbit(values)
    pairs: Array = (codes[:, ::2] + 16 * codes[:, 1::2]).astype(np.uint8)
    return pairs.view(np.int8)


class CompressedFloats(Fp8):
    """compressed-tensors' float-quantized; a scale for each row, or one for all."""

    suffix = "weight_scale"

    def __init__(self, strategy: str) -> None:
        super().__init__()
        self._strategy = strategy
        weights = {
            "num_bits": 8,
            "type": "float",
            "strategy": strategy,
            "symmetric": True,
            "dynamic": False,
            "group_size": None,
            "block_structure": None,
            "observer": "minmax",
        }
        activations = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
        self.config = _compressed("float-quantized", weights, activations)

    def _sides(self, outer: int, inner: int) -> tuple[int, int]:
        return (outer if self._strategy == "tensor" else 1), inner


class ModeloptFloats(Fp8):
    """Model Optimizer's 8-bit floats, with what it fixed beforehand for activations and cache."""

    suffix = "weight_scale"

    def __init__(self, algorithm: str) -> None:
        super().__init__(128)
        self._algorithm = algorithm
        self.config = _modelopt(algorithm, {"dynamic": False, "num_bits": 8, "type": "float"})

    def pack(self, name: str, weight: Array, random: np.random.Generator) -> tuple[Tensors, Array]:
        """`name`.weight [outer, inner] -> what is stored of it, and what that means."""
        stored, meant = super().pack(name, weight, random)
        scales = stored[f"{name}.weight_scale"]
        rows, columns = scales.shape
        shapes: dict[str, tuple[int, ...]] = {"FP8": (), "fp8_pb_wo": (rows, 1, columns, 1)}
        shape = shapes.get(self._algorithm, (rows,))
        return {**stored, f"{name}.weight_scale": scales.reshape(shape), **_fixed(name)}, meant

    def _sides(self, outer: int, inner: int) -> tuple[int, int]:
        if self._algorithm == "fp8_pb_wo":
            return super()._sides(outer, inner)
        return (outer if self._algorithm == "FP8" else 1), inner


class ModeloptFourBits:
    """Model Optimizer's NVFP4."""

    def __init__(self, algorithm: str = "NVFP4") -> None:
        self.config: Mapping[str, object] = _modelopt(
            algorithm, {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
        )

    def pack(self, name: str, weight: Array, random: np.random.Generator) -> tuple[Tensors, Array]:
        """`name`.weight [outer, inner] -> what is stored of it, and what that means."""
        number = np.float32(np.abs(weight).max() / (6 * 448))
        packed, scales, meant = _four_bits(weight, number, lambda scale: scale * number)
        stored = {
            f"{name}.weight": packed,
            f"{name}.weight_scale": scales,
            f"{name}.weight_scale_2": np.array(number),
        }
        return stored | _fixed(name), meant


class CompressedFourBits:
    """compressed-tensors' nvfp4-pack-quantized; `alone`: activations are not rounded."""

    def __init__(self, *, alone: bool = False) -> None:
        weights = {
            "num_bits": 4,
            "type": "float",
            "strategy": "tensor_group",
            "group_size": 16,
            "symmetric": True,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
            "observer": "minmax",
            "observer_kwargs": {},
        }
        activations = None if alone else {**weights, "dynamic": "local"}
        self._alone = alone
        self.config = _compressed("nvfp4-pack-quantized", weights, activations)

    def pack(self, name: str, weight: Array, random: np.random.Generator) -> tuple[Tensors, Array]:
        """`name`.weight [outer, inner] -> what is stored of it, and what that means."""
        number = np.float32(6 * 448 / np.abs(weight).max())
        packed, scales, meant = _four_bits(weight, 1 / number, lambda scale: scale / number)
        stored = {
            f"{name}.weight_packed": packed,
            f"{name}.weight_scale": scales,
            f"{name}.weight_global_scale": np.array([number]),
        }
        if not self._alone:
            stored[f"{name}.input_global_scale"] = np.array([7.5], np.float32)
        return stored, meant


def _four_bits(
    weight: Array, number: np.float32, meant_by: Callable[[np.float32], np.float32]
) -> tuple[Array, Array, Array]:
    """Bytes, scales and what they mean; a scale is meant as `meant_by` says."""
    sizes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    outer, inner = weight.shape
    packed = np.zeros((outer, inner // 2), np.uint8)
    scales = np.zeros((outer, inner // 16), ml_dtypes.float8_e4m3fn)
    meant = np.zeros(weight.shape, np.float32)
    for row in range(outer):
        for group in range(inner // 16):
            own = weight[row, 16 * group : 16 * group + 16]
            scales[row, group] = np.abs(own).max() / 6 / number
            step = meant_by(np.float32(scales[row, group]))
            for at, value in enumerate(own, 16 * group):
                code = int(np.argmin([abs(abs(value) / step - size) for size in sizes]))
                meant[row, at] = np.copysign(np.float32(sizes[code]) * step, value)
                sign = 8 if np.signbit(value) else 0
                packed[row, at // 2] |= (sign | code) << (4 * (at % 2))
    return packed, scales, meant


def _fixed(name: str) -> Tensors:
    """What was measured of activations, and of a cache of 8-bit floats."""
    scales = {f"{name}.input_scale": np.array(0.01, np.float32)}
    for part in ("k", "v"):
        if name.endswith(f".{part}_proj"):
            scales[f"{name}.{part}_scale"] = np.array(1.0, np.float32)
    return scales


def _modelopt(algorithm: str, scheme: Mapping[str, object]) -> Mapping[str, object]:
    group = {"input_activations": scheme, "weights": scheme, "targets": ["Linear"]}
    return {
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "producer": {"name": "modelopt", "version": "0.39.0"},
    }


def _compressed(
    form: str, weights: Mapping[str, object], activations: Mapping[str, object] | None
) -> Mapping[str, object]:
    group = {
        "input_activations": activations,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": weights,
    }
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "format": form,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


def _rounded(
    weight: Array, groups: Array, bits: int, symmetric: bool
) -> tuple[Array, Array, Array]:
    """Integers [outer, inner], scales and zero points [outer, groups]; no zero point is 0."""
    top, count = (1 << bits) - 1, int(groups.max()) + 1
    scales = np.zeros((len(weight), count), np.float16)
    zeros = np.zeros((len(weight), count), np.int64)
    integers = np.zeros(weight.shape, np.int64)
    for group in range(count):
        own = weight[:, groups == group]
        low, high = np.minimum(own.min(1), 0), np.maximum(own.max(1), 0)
        if symmetric:
            high = np.maximum(high, -low)
            low = -high
        scales[:, group] = (high - low) / top
        scale = scales[:, group].astype(np.float32)
        zeros[:, group] = (top + 1) // 2 if symmetric else np.rint(-low / scale).clip(1, top)
        rounded = np.rint(own / scale[:, None]) + zeros[:, group, None]
        integers[:, groups == group] = rounded.clip(0, top)
    return integers, scales, zeros


def _meant(integers: Array, scales: Array, zeros: Array, groups: Array) -> Array:
    steps = (integers - zeros[:, groups]).astype(np.float32)
    return steps * scales[:, groups].astype(np.float32)


def _words(values: Array, bits: int, axis: int) -> Array:
    """Neighbours along `axis` in one int32, the first in its lowest bits."""
    values = np.moveaxis(values, axis, -1)
    per_word = 32 // bits
    words = np.zeros((*values.shape[:-1], -(-values.shape[-1] // per_word)), np.uint32)
    for index in range(values.shape[-1]):
        shifted = values[..., index].astype(np.uint32) << np.uint32(bits * (index % per_word))
        words[..., index // per_word] |= shifted
    return np.moveaxis(words, -1, axis).view(np.int32) if axis else _first(words)


def _first(words: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(words, -1, 0)).view(np.int32)


def _interleaved(values: Array) -> Array:
    """Of each eight columns, first the even ones, then the odd ones."""
    eights = values.reshape(len(values), -1, 8)
    return np.concatenate([eights[..., 0::2], eights[..., 1::2]], -1).reshape(values.shape)


def _torch(values: Array) -> torch.Tensor:
    """For the library's NumPy interface has no word for 8-bit floats."""
    values = np.ascontiguousarray(values)
    if values.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(values.view(np.uint8)).view(torch.float8_e4m3fn)
    if values.dtype == ml_dtypes.float8_e8m0fnu:
        return torch.from_numpy(values.view(np.uint8)).view(torch.float8_e8m0fnu)
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
