"""Pre-training programs, each from its command line: `python -m pretrain.run ...` from the root of the repository."""
