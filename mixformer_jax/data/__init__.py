"""Data sets: readers, frame sampling, augmentation and rendered pairs."""
