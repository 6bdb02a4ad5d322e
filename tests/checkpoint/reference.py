"""The reference implementations, loaded from the same checkpoint directories."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DynamicCache,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import Mxfp4Config

from appliance.pb import onnx_graph_pb2 as pb
from installer.checkpoint.families.known import FAMILIES
from installer.checkpoint.graph.stacks import block_of_both
from installer.checkpoint.graph.table import table_block
from installer.checkpoint.quantize import (
    SCHEMES,
    Precision,
    Scheme,
    block_size,
    dequantize,
    quantize,
    quantize_rows,
)

Floats = npt.NDArray[np.float32]

torch.set_num_threads(1)  # the machine runs other tests beside these
transformers_logging.disable_progress_bar()
logging.getLogger("transformers").setLevel(logging.ERROR)


class ReferenceDecoder:
    """Transformers in fp32.

    `settled` keeps LongRoPE's angles from changing with the length of each sequence: they are
    those of the whole context, as a bundle has them (docs/decisions/0171-one-set-of-angles.md).
    """

    def __init__(self, checkpoint: Path, *, settled: bool = True) -> None:
        config = reference_config(checkpoint)
        options: dict[str, Any] = {"dtype": torch.float32, "config": config}
        if (getattr(config, "quantization_config", None) or {}).get("quant_method") == "mxfp4":
            options["quantization_config"] = Mxfp4Config(dequantize=True)
        model: Any = _class_of(config).from_pretrained(checkpoint, **options)
        self.model = model.eval()
        if settled:
            _settle(model)

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Logits after each token, [tokens, vocab]."""
        with torch.inference_mode():
            result: Floats = self.model(torch.tensor([list(tokens)])).logits[0].numpy()
        return result

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` tokens that greedy decoding appends, with the reference's own cache."""
        appended: list[int] = []
        given, cache = list(tokens), None
        with torch.inference_mode():
            for _ in range(count):
                out = self.model(torch.tensor([given]), past_key_values=cache, use_cache=True)
                given, cache = [int(out.logits[0, -1].argmax())], out.past_key_values
                appended += given
        return appended


def reference_config(checkpoint: Path) -> Any:  # the library has no types
    """The library's configuration; of an architecture that it has under another name, by that."""
    document = json.loads((checkpoint / "config.json").read_text())
    family = FAMILIES.get(document["model_type"])
    if family is None or not family.stand_in:
        return AutoConfig.from_pretrained(checkpoint)
    return AutoConfig.for_model(**(document | family.stand_in))


def _class_of(config: Any) -> Any:  # the library has no types
    """What decodes; of models that see as well often another class."""
    decodes = type(config) in AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if decodes else AutoModelForImageTextToText


def _settle(model: Any) -> None:  # the library has no types
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return
    original = rope["original_max_position_embeddings"]
    if config.max_position_embeddings > original:
        long, _ = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=original + 1)
        model.model.rotary_emb.original_inv_freq.copy_(long)


class ReferenceEncoder:
    """An encoder, or a decoder read at its last token, in fp32; sentence-transformers' pooling."""

    def __init__(self, checkpoint: Path, *, pooling: str = "mean", normalize: bool = True) -> None:
        model: Any = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
        self.model = model.eval()
        self._pooling, self._normalize = pooling, normalize
        self._dense = list(_dense_modules(checkpoint))

    def embed(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> Floats:
        """Embeddings [batch, dimensions]."""
        with torch.inference_mode():
            states = self.model(torch.tensor(ids), attention_mask=torch.tensor(mask))
        hidden: Floats = states.last_hidden_state.numpy()
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        elif self._pooling == "last":
            pooled = hidden[np.arange(len(mask)), mask.sum(1) - 1]
        else:
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        for module in self._dense:
            with torch.inference_mode():
                pooled = module(torch.tensor(pooled, dtype=torch.float32)).numpy()
        if self._normalize:
            pooled = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return pooled.astype(np.float32)


def _dense_modules(checkpoint: Path) -> Iterator[torch.nn.Module]:
    """What sentence-transformers puts behind its pooling, of torch's own modules."""
    for entry in json.loads((checkpoint / "modules.json").read_text()):
        if not entry["type"].endswith(".Dense"):
            continue
        folder = checkpoint / entry["path"]
        config = json.loads((folder / "config.json").read_text())
        linear = torch.nn.Linear(config["in_features"], config["out_features"], config["bias"])
        weights = load_file(folder / "model.safetensors")
        linear.load_state_dict(
            {name.removeprefix("linear."): torch.tensor(w) for name, w in weights.items()}
        )
        activation = getattr(torch.nn, config["activation_function"].rpartition(".")[-1])
        yield torch.nn.Sequential(linear, activation())


def with_rounded_weights(
    checkpoint: Path, target: Path, precision: Precision, kept: Sequence[str] = ()
) -> Path:
    """A copy of `checkpoint` in `target` whose matrices are rounded as that grade does it.

    Names with one of `kept` in them are left as they are.
    """
    shutil.copytree(checkpoint, target)
    weights: dict[str, npt.NDArray[Any]] = load_file(target / "model.safetensors")
    for name, values in weights.items():
        if ".experts." in name or name.endswith(_STACKED_ROWS):
            rows = _stacked_as_multiplied(name, weights)
            weights[name] = _rounded_experts(name, values, SCHEMES[precision], rows=rows)
        elif values.ndim > 1 and _has(name, _TOWERS) and not _has(name, kept):
            scheme = SCHEMES[_OF_TOWERS.get(precision, precision)]
            flat = values.reshape(len(values), -1)  # what takes patches has more axes
            weights[name] = _rounded(name, flat, scheme).reshape(values.shape)
        elif values.ndim == 2 and not _has(name, (*_ROUTERS, *_KEPT, *kept)):
            weights[name] = _rounded(name, values, SCHEMES[precision])
            if steps := _steps(weights, name):
                weights[name][-steps:] = values[-steps:]
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def _has(name: str, words: Sequence[str]) -> bool:
    return any(word in name for word in words)


def _steps(weights: Mapping[str, npt.NDArray[Any]], name: str) -> int:
    """How many rows of a matrix, the last ones, say what a running state decays by."""
    stem, _, end = name.rpartition("in_proj.weight")
    return 0 if end or not stem else len(weights.get(f"{stem}A_log", ()))


def with_rounded_rows(checkpoint: Path, target: Path) -> Path:
    """As `with_rounded_weights`, in `w8a8`."""
    return with_rounded_weights(checkpoint, target, "w8a8")


def _rounded(name: str, values: npt.NDArray[Any], scheme: Scheme) -> Floats:
    if scheme.integer_products and not any(word in name for word in _LOOKED_UP):
        integers, scales = quantize_rows(values)
        return (integers * scales[:, None]).astype(np.float32)
    table = any(word in name for word in _TABLES)
    if scheme.float_bits == 16:
        plain = table or not scheme.byte_floats or values.shape[1] % 16 != 0
        return values.astype(np.float16).astype(np.float32) if plain else _byte_floats(values)
    bits = scheme.table_bits if table else scheme.layer_bits
    width = values.shape[1]
    block = table_block(width) if table else block_size(width)
    return dequantize(quantize(values, bits, block), bits, width)


def _byte_floats(values: npt.NDArray[Any]) -> Floats:
    """Rounded to 8-bit floats by torch, a scale for each 128 of a row or what divides it."""
    runs = torch.from_numpy(values).reshape(len(values), -1, math.gcd(128, values.shape[1]))
    scales = runs.abs().amax(-1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    scales[scales == 0] = 1
    meant = (runs / scales).to(torch.float8_e4m3fn).float() * scales
    rounded: Floats = meant.reshape(values.shape).numpy()
    return rounded


_ROUTERS = (
    *(".gate.weight", "mlp.router.weight", "ffn.gate.", "e_score_correction_bias"),
    "router.layer.weight",
)
_STACKED_ROWS = ("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight")
"""Of all experts, as they are multiplied with."""
_KEPT = (
    *(
        "kv_b_proj",
        "wkv_b",
        "in_proj_a",
        "in_proj_b",
        "in_proj_ba",
        "shared_expert_gate",
        "weights_proj",
    ),
    *("feed_forward.router", "f_a_proj", "f_b_proj", "self_attn.b_proj", "gate.wg"),
    *("hc_attn_fn", "hc_ffn_fn", "hc_head", "compressor.ape", "router.gate"),
    *("block_inject_weight", "linear_attn.a_proj", "linear_attn.b_proj"),
)
"""What expands latents, what a running state decays by, what weighs a shared expert or the heads of
an index, what mixes streams or a stream takes in, what places add to gates: kept in floats, as
routers are."""
_TABLES = (
    *("embed_tokens", "lm_head", "word_embeddings", "backbone.embeddings", "head.weight"),
    *("ngram_embedding", "tok_embeddings", "output.weight"),
)
_LOOKED_UP = ("embed_tokens_per_layer", "ngram_embedding")
"""Tables that nothing is multiplied with: in blocks where others have a scale a row."""
_OF_TOWERS: Mapping[Precision, Precision] = {"int4": "int8", "fp8": "fp16"}
_TOWERS = ("visual.", "vision_tower.", "vision_adapter.", "vision_projection.")
"""In names of a vision tower's tensors; 4 bits are too few for it."""
_DOWN = ("down_proj", "down_proj.weight", "w2.weight")


def _stacked_as_multiplied(name: str, shapes: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether all experts' matrices are in one tensor, and not turned."""
    if name.endswith(_STACKED_ROWS):
        return True
    stem = name.rpartition(".")[0]
    both = [shapes.get(f"{stem}.{end}") for end in ("gate_up_proj", "down_proj")]
    if both[0] is None or both[1] is None:
        return False
    (_, opened, hidden), (_, outer, inner) = both[0].shape, both[1].shape
    return (opened, hidden) == (2 * inner, outer)


def _rounded_experts(
    name: str, values: npt.NDArray[Any], scheme: Scheme, *, rows: bool = False
) -> npt.NDArray[Any]:
    """In blocks in every grade of integers; experts in 4-bit floats are kept as they are.

    `rows`: the stack of all experts is as it is multiplied with.
    """
    if values.dtype == np.uint8 or values.ndim == 1 or name.endswith("_bias"):
        return values
    if rows:
        end = _DOWN[0] if name.endswith(("output_linear.weight", _DOWN[0])) else "gate_up"
        return np.stack([_rounded_experts(end, one, scheme) for one in values])
    if values.ndim == 3:  # of all experts, transposed
        each = [_rounded_experts(name, one.T.copy(), scheme).T for one in values]
        return np.ascontiguousarray(np.stack(each))
    bits, (outer, width) = scheme.layer_bits, values.shape
    hidden, inner = (outer, width) if name.endswith(_DOWN) else (width, outer)
    if "gate_up" in name:
        inner //= 2
    block = block_of_both(hidden, inner)
    return dequantize(quantize(values, bits, block), bits, width)


class RoundingReference(ReferenceDecoder):
    """The reference with the roundings of a w8a8 bundle's graph: of weights, inputs and cache."""

    def __init__(self, rounded: Path, graph: Path) -> None:
        super().__init__(rounded)
        self._graph = graph
        for name, layer in self.model.named_modules():
            if hasattr(layer, "A_log") and isinstance(getattr(layer, "in_proj", None), _LINEAR):
                layer.in_proj.forward = partial(_all_but_steps, layer.in_proj, len(layer.A_log))
            elif isinstance(layer, _LINEAR) and not (name.endswith(_KEPT) or _told(layer)):
                layer.register_forward_pre_hook(_round_rows)

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Logits after each token, [tokens, vocab]."""
        config = self.model.config.get_text_config()
        cache = _cache_of(config)(self._graph, config)
        with torch.inference_mode():
            out = self.model(torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True)
        logits: Floats = out.logits[0].numpy()
        return logits


_BLOCKS = "minimax_m3_sparse"
_ATTENDING = ("full_attention", "sliding_attention", "indexed_attention")


class _RoundingCache(DynamicCache):
    """Holds what the graph's integers stand for; its scales are the graph's."""

    def __init__(self, graph: Path, config: Any = None) -> None:
        kinds = getattr(config, "layer_types", None) or []
        recurrent = not {"linear_attention", "conv", "hybrid"}.isdisjoint(kinds)
        indexed = bool({"indexed_attention", _BLOCKS} & set(kinds))
        super().__init__(config=config if recurrent or indexed else None)
        attending = [layer for layer, kind in enumerate(kinds) if kind in _ATTENDING]
        self._places = {layer: place for place, layer in enumerate(attending)} if recurrent else {}
        """Of layers among those that have keys and values, where some have none."""
        model = pb.Model.FromString(graph.read_bytes())
        together = getattr(config, "model_type", "") in ("glm_moe_dsa", "mistral_large4_text")
        self._halves = config.qk_rope_head_dim if together else 0
        """Of an index key, numbers that stand otherwise than in the graph."""
        self._turns = getattr(config, "no_rope_layers", None)
        """Of each layer, whether it turns anything; None: all do."""
        into = getattr(config, "attention_in_multiplier", 1.0)
        self._factors = (into * getattr(config, "key_multiplier", 1.0), into)
        """By which keys and values are larger than in the graph, which multiplies later."""
        self._scales = {
            tensor.name: np.frombuffer(tensor.raw_data, np.float32)
            for tensor in model.graph.initializer
            if tensor.name.startswith("cache.")
        }

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        at = self._places.get(layer_idx, layer_idx)
        keys = self._rounded(f"key_{at}", key_states / self._factors[0]) * self._factors[0]
        values = self._rounded(f"value_{at}", value_states / self._factors[1]) * self._factors[1]
        kept: tuple[torch.Tensor, torch.Tensor] = super().update(
            keys, values, layer_idx, *args, **kwargs
        )
        return kept

    def _rounded(self, name: str, x: torch.Tensor) -> torch.Tensor:
        # Heads may be wider in the cache, by what only tells chunks apart.
        scale = self._scale(name).view(x.shape[1], 1, -1)[..., : x.shape[3]]
        return _rounded_by(x, scale)

    def _behind(self, at: int, heads: int, width: int) -> torch.Tensor:
        """Scales of an index key, halves of which stand behind keys and values of `width`."""
        both = (self._scale(f"{name}_{at}").view(heads, -1)[:, width:] for name in ("key", "value"))
        return torch.cat([half.reshape(-1) for half in both])

    def _scale(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self._scales[f"cache.{name}"].copy())


def _rounded_by(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.round(x / scale).clamp(-128, 127) * scale


class _RoundingBlocks(_RoundingCache):
    """With keys by which blocks are found, halves of which stand behind keys and values."""

    def __init__(self, graph: Path, config: Any) -> None:
        super().__init__(graph, config)
        for at, layer in enumerate(self.layers):
            if config.layer_types[at] == _BLOCKS:
                self._round_index(at, layer, config.num_key_value_heads, config.head_dim)

    def _round_index(self, at: int, layer: Any, heads: int, width: int) -> None:
        scale, keep = self._behind(at, heads, width), layer.update_index
        layer.update_index = lambda keys: keep(_rounded_by(keys, scale))


class _RoundingPooled(_RoundingCache):
    """With keys of an index, of layers among others that keep a running state."""

    def __init__(self, graph: Path, config: Any) -> None:
        super().__init__(graph, config)
        self._heads = config.num_key_value_heads, config.head_dim

    def update_indexer(self, key_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        scale = self._behind(self._places[layer_idx], *self._heads)
        kept: torch.Tensor = super().update_indexer(_rounded_by(key_states, scale), layer_idx)
        return kept


class _RoundingLatents(_RoundingCache):
    """As the bundle has latents: behind the part that is turned, whose neighbours turn together.

    A key by which tokens are found stands in front of the latent among values.
    """

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        turned, place = self._together(value_states), self._places.get(layer_idx, layer_idx)
        scale, width = self._scale(f"key_{place}"), key_states.shape[-1]
        turned = _rounded_by(turned, scale[: turned.shape[-1]])
        latent = _rounded_by(key_states, scale[-width:])
        kept: tuple[torch.Tensor, torch.Tensor] = DynamicCache.update(
            self, latent, self._apart(turned), layer_idx, *args, **kwargs
        )
        return kept

    def update_indexer(self, key_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        scale = self._scale(f"value_{layer_idx}")[: key_states.shape[-1]]
        turns = self._turns is None or self._turns[layer_idx]
        if self._halves and turns:  # of what is turned; the graph has neighbours
            turned, rest = scale.tensor_split([self._halves], -1)
            scale = torch.cat([self._apart(turned), rest])
        kept: torch.Tensor = super().update_indexer(_rounded_by(key_states, scale), layer_idx)
        return kept

    def _together(self, turned: torch.Tensor) -> torch.Tensor:
        """As the reference has them -> neighbours."""
        return turned

    def _apart(self, turned: torch.Tensor) -> torch.Tensor:
        """Neighbours -> as the reference has them."""
        return turned


class _PairsApart(_RoundingLatents):
    """Of a reference that has the first of each pair, then the second of each."""

    def _together(self, turned: torch.Tensor) -> torch.Tensor:
        return turned.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)

    def _apart(self, turned: torch.Tensor) -> torch.Tensor:
        return turned.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def _cache_of(config: Any) -> type[_RoundingCache]:  # the library has no types
    if _BLOCKS in (getattr(config, "layer_types", None) or ()):
        return _RoundingBlocks
    if config.model_type == "qwen4_exp_text":
        return _RoundingPooled
    if not hasattr(config, "kv_lora_rank"):
        return _RoundingCache
    together = ("deepseek_v2", "kimi_linear")
    return _RoundingLatents if config.model_type in together else _PairsApart


_LINEAR = torch.nn.Linear


def _told(layer: torch.nn.Linear) -> bool:
    """Whether it was told to round in its own way."""
    return "forward" in vars(layer)


def _all_but_steps(layer: torch.nn.Linear, steps: int, x: torch.Tensor) -> torch.Tensor:
    """The product of x, but for the last columns, by which a running state decays, rounded."""
    both = (x, *_round_rows(layer, (x,)))
    whole, rounded = (torch.nn.functional.linear(y, layer.weight) for y in both)
    return torch.cat([rounded[..., :-steps], whole[..., -steps:]], -1)


def _round_rows(_module: object, inputs: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
    (x,) = inputs
    peaks = x.abs().amax(-1, keepdim=True).clamp_min(1e-10)
    return (torch.round(x * (127 / peaks)) * (peaks / 127),)
