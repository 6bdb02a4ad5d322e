"""The methods this release can read: one entry and one file each.

To add one, write its file with `read(settings) -> Method`, and name it here by its `quant_method`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from appliance.errors import CheckpointError
from installer.checkpoint.packed import awq, compressed, fp8, gptq, modelopt, mxfp4
from installer.checkpoint.packed.packing import Method
from installer.checkpoint.quantize import FLOAT_BITS, SCHEMES, Precision, Scheme
from installer.checkpoint.settings import Settings

KEY = "quantization_config"

METHODS: Mapping[str, Callable[[Settings], Method]] = {
    "awq": awq.read,
    "compressed-tensors": compressed.read,
    "fp8": fp8.read,
    "gptq": gptq.read,
    "modelopt": modelopt.read,
    "mxfp4": mxfp4.read,
}


def read_method(config: Settings) -> Method | None:
    """The method of `config`'s quantization_config, or None if the weights are plain.

    Raises CheckpointError naming the key that cannot be expressed.
    """
    section = config.section(KEY)
    if section is None:
        return None
    # Older releases of that tool do not say whose words these are.
    name = section.text("quant_method", "modelopt" if "quant_algo" in section else None)
    if name not in METHODS:
        raise CheckpointError(
            f"config.json: {KEY}: quant_method {name!r} is not supported",
            hint=f"this release reads {', '.join(METHODS)}, and plain weights",
        )
    method = METHODS[name](section)
    section.finish()
    return method


def treatment(method: Method, precision: Precision, offered: Collection[Precision]) -> str:
    """What the grade `precision` does to a checkpoint's packed matrices, for the packager.

    `offered`: the grades that the model can be built in.
    """
    scheme = SCHEMES[precision]
    if scheme.byte_floats and method.bits is None:
        does = f"{precision} stores the same floats and scales"
    elif scheme.layer_bits in FLOAT_BITS:
        does = f"{precision} stores what they mean"
    elif scheme.layer_bits == method.bits and _keeps(method, scheme):
        does = f"{precision} stores the same integers and scales"
    else:
        does = f"{precision} rounds them again"
        keeps = "fp8" if method.bits is None else f"int{method.bits}"
        if keeps in offered:
            does += f"; --precision {keeps} would keep them"
    return f"the checkpoint is quantized ({method.label}): {does}"


def _keeps(method: Method, scheme: Scheme) -> bool:
    """Whether a grade of as many bits stores the integers; experts are in blocks in all grades."""
    if scheme.byte_floats:
        return False
    return isinstance(method, mxfp4.Mxfp4) or not scheme.integer_products
