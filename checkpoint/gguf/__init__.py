"""GGUF files: their keys, tensors and vocabulary read as their format defines them."""
