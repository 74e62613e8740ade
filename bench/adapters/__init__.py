"""One small file per system that `piston bench` can run; `serve.py` runs it in that system's own Python."""
