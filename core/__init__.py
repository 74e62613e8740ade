"""What every stage stands on: errors, console, atomic output, statistics, gates, reports, the contract on disk."""

import os

# ONNX Runtime's own packages (1.29 and later) send model and graph names, hashes and a machine's id to Microsoft unless
# this is set when they start. The runtime opens no connection: every package of Piston's imports this one first.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
