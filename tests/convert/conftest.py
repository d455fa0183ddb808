"""PyTorch, for the tests that need it."""

import types

import pytest


@pytest.fixture(scope="session")
def torch() -> types.ModuleType:
    """Imported by the first test that asks: that takes seconds."""
    import torch

    return torch
