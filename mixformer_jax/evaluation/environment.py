"""What else the digits of a result depend on: versions of the libraries, and who decoded the frames."""

import importlib.metadata
import platform
import re

import cv2
import flax
import jax
import jaxlib
import numpy as np

import mixformer_jax
from mixformer_jax.media.decoders import decoder_name, find_pyav

# OpenCV comes in four packages, whose versions tell more than the module's own.
READERS = ("opencv-python-headless", "opencv-contrib-python-headless", "opencv-python", "opencv-contrib-python", "av")


def versions() -> dict[str, str]:
    """Versions of what computes and reads, by name."""
    found = {
        "mixformer-jax": mixformer_jax.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
    for name in READERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def decoders() -> dict[str, str]:
    """Who decodes images and videos, and the libraries that OpenCV was built with."""
    built_with = cv2.getBuildInformation()
    jpeg, avcodec = (re.search(rf"^\s*{name}:\s*(.+?)\s*$", built_with, re.M) for name in ("JPEG", "avcodec"))
    library = f", avcodec {avcodec[1].removeprefix('YES ') if avcodec else 'unknown'}" if find_pyav() is None else ""
    return {
        "images": f"OpenCV {cv2.__version__}, JPEG {jpeg[1] if jpeg else 'unknown'}",
        "video": f"{decoder_name()}{library}",
    }


def matmul_precision() -> str:
    """How JAX rounds the factors of float32 products: `default` may mean TF32 on GPUs and bfloat16 on TPUs."""
    return str(jax.config.jax_default_matmul_precision or "default")  # type: ignore[attr-defined]
