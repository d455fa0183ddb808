"""Weights in files: our own format, and the official PyTorch names."""
