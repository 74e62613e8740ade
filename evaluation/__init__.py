"""Quality of a model: perplexity on a text, and agreement with a reference. Imports no torch."""
