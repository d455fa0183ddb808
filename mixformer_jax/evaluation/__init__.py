"""Running trackers over benchmarks and scoring what they wrote; the two meet only at text files."""
