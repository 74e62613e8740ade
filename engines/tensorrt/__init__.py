"""Engines for TensorRT and TensorRT-RTX: one lowering, one proof without a GPU, one compiler call for both."""
