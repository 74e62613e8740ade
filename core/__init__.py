"""Shared by every stage: errors, console, atomic output, statistics, gates, reports, the files of a bundle."""

import os

# ONNX Runtime's own packages (1.29 and later) send model and graph names, hashes and a machine's id to Microsoft unless
# this is set when they start. The runtime opens no connection: every package of Piston imports this one first.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
