"""Audio as speech models read it: files to samples, samples to log-mel frames, tokens to timed text."""
