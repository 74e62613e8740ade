"""A checkpoint becomes a smaller one: pruned by measurement, then trained towards the whole one's answers."""
