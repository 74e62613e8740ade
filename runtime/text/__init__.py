"""Tokenizer, chat template, and stop strings."""
