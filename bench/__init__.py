"""What users feel, measured: latency, speed and memory, beside rivals and against a baseline. Torch-free."""
