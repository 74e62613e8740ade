"""Engines for TensorRT and TensorRT-RTX: one lowering, one parity without a GPU, one compiler call for both."""
