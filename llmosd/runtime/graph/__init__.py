"""Builders of the ONNX graphs that one engine step runs."""
