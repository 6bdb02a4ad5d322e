"""From checkpoint tensors to ONNX graphs: a builder, shared blocks, one file per family."""
