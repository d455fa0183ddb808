"""MixFormer in JAX: end-to-end tracking with mixed attention.

import mixformer_jax
tracker = mixformer_jax.load()
state = tracker.start(frame, box_xywh)
state, prediction = tracker.step(state, frame)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixformer_jax.tracking.tracker import load as load

__version__ = "0.1.0"
DEFAULT_MASKS = "mixvit_tiny_masks"  # the embedded masks; known to the help without NumPy
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    # `load` imports jax, which takes a second; the package, and so `mixformer --help`, does not wait.
    if name == "load":
        from mixformer_jax.tracking.tracker import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "load"])
