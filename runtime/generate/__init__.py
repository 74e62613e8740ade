"""Decoding: requests, speculation, and completions."""
