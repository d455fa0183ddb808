"""Trackers as programs that run without this package: StableHLO and ONNX."""
