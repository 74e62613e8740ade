"""One small file per system that `piston bench` can drive; each runs in that system's own Python, by `serve.py`."""
