"""Benchmark programs, each from its command line: `python -m eval.run ...` from the root of the repository."""
