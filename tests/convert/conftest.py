"""PyTorch, for the tests that need it."""

import os
import types

import pytest


@pytest.fixture(scope="session")
def torch() -> types.ModuleType:
    """PyTorch; a test without it skips, except where CI says that nothing may be skipped."""
    if os.environ.get("CI") == "true":
        import torch

        return torch
    return pytest.importorskip("torch")
