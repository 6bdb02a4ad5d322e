"""From checkpoint tensors to ONNX graphs: a builder, and the parts that model families share."""
