"""Training samples from decoded material in memory, rendered on the host or on the device."""
