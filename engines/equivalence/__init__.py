"""Checks that a lowered graph is equivalent to the canonical graph."""
