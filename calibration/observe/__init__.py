"""Activations observed in bounded memory."""
