"""Readers: one file a data set, each a function from a root folder to its sequences."""
