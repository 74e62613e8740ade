"""Sampling parameters, logits processors, and the sampler of a row."""
