"""Engines of TensorRT and TensorRT-RTX: a verified plan with its contexts and buffers, as an Engine."""
