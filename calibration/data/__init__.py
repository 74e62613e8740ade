"""Rows of tokens to calibrate with and to check against."""
