"""What runs on the node: trust, model store, compiler, engine, audit, metering, HTTP shim."""

import os

__version__ = "0.1.0"

# ONNX Runtime reports to its maker from the moment it is imported, and its own
# `disable_telemetry_events()` comes too late (decision 0065). Nothing here imports it first.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
