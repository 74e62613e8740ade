"""What a model's answers are worth: perplexity on a text, and agreement with a reference. Torch-free."""
