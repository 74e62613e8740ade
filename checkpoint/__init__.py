"""A checkpoint as the user brings it, a Hugging Face directory, hub id or GGUF file: checked, loaded, tokenized."""
