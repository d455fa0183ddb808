"""Readers of data sets, each a function from a root folder to its sequences."""
