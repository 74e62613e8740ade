"""A float model directory becomes a quantized one: explicit Q/DQ in the canonical graph, with what it cost."""
