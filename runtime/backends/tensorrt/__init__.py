"""Engines of TensorRT and TensorRT-RTX: a verified plan, its contexts and buffers, behind the Engine protocol."""
