"""Engines: ONNX Runtime on the CPU and on CUDA, TensorRT, TensorRT-RTX, and which of them is loaded."""
