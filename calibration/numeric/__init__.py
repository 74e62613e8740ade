"""Ranges, clipping, and rounding of arrays."""
