"""Where everything lies in a bundle, and what an unfinished one has besides."""

from __future__ import annotations

GRAPH = "graph/cpu/model.onnx"
PREFILL_GRAPH = "graph/cpu/prefill.onnx"
ADAPTED_GRAPH = "graph/cpu/adapted.onnx"
ADAPTED_PREFILL_GRAPH = "graph/cpu/adapted-prefill.onnx"
CUDA_GRAPH = "graph/cuda/model.onnx"
COMPACT_GRAPH = "graph/cuda/compact.onnx"
TRT_GRAPH = "graph/trt/model.onnx"
OBSERVED = "observed.onnx"
SHALLOW = "shallow.onnx"
VISION_GRAPH = "graph/vision/model.onnx"
WEIGHTS = "graph/cpu"
TOKENIZER = "tokenizer/tokenizer.json"
LICENCE = "LICENSE"
MODEL_CARD = "MODEL_CARD.md"
README = "README.md"
