"""LLMOS: an operating system for language models."""

import os

__version__ = "0.1.0"

# ONNX Runtime's Linux wheels (seen in 1.32) keep a database of usage under ~/.cache and upload it; what runs here
# stays here. It reads the variable when it is first imported, which is after this.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
