"""Engines: ONNX Runtime on CPU and CUDA, TensorRT, TensorRT-RTX, and the choice among them."""
