"""Quantization schemes: w8a8, weight-only, GPTQ, AWQ, SmoothQuant, INT8 caches and tables."""
