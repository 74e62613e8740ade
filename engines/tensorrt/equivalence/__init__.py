"""Checks of TensorRT graphs, executed on ONNX Runtime."""
