"""Tracking: explicit state, pure per-frame steps, and the host loop around them."""
