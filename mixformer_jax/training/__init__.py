"""Training: losses, optimizer, checkpoints, steps and the loop."""
