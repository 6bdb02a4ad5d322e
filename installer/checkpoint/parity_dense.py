"""The dense layers behind a pooling as the parity gate computes them, without any graph.

The reference has the transformer alone: what sentence-transformers puts behind it is said a second
time here, in numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from installer.checkpoint.graph.sentence import Activation, Sentence
from installer.checkpoint.quantize import Float32
from installer.checkpoint.tensors import Tensors

_ACTIVATIONS: Mapping[Activation, Callable[[Float32], Float32]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "Sigmoid": lambda x: np.asarray(1 / (1 + np.exp(-x)), np.float32),
    "ReLU": lambda x: np.maximum(x, 0),
    "GELU": lambda x: x * np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in x], np.float32),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """activation(weight @ x + bias)."""

    weight: Float32
    bias: Float32
    activation: Activation

    def __call__(self, x: Float32) -> Float32:
        """x [inner] -> [outer]."""
        y: Float32 = self.weight @ x + self.bias
        return _ACTIVATIONS[self.activation](y)


def dense_layers(tensors: Tensors, sentence: Sentence) -> Sequence[Layer]:
    """Those of the checkpoint, in their order."""
    layers = []
    for layer in sentence.dense:
        weight = np.concatenate(list(tensors.rows(f"{layer.name}.weight")))
        bias = np.zeros(layer.outer, np.float32)
        if layer.bias:
            bias = tensors.vector(f"{layer.name}.bias", layer.outer)
        layers.append(Layer(weight, bias, layer.activation))
    return layers
