"""Measures latency, speed and memory, next to other systems and against a baseline. Imports no torch."""
