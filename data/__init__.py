"""Rows of tokens from files of text, conversations or token ids: to calibrate, to distill and to check with."""
