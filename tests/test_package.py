"""The package as a whole: cheap to import, complete when built."""

import subprocess
import sys
from pathlib import Path

import pytest

import mixformer_jax

PACKAGE = Path(mixformer_jax.__file__).parent


def test_import_brings_no_jax():
    heavy = ("jax", "flax", "cv2", "numpy")
    program = f"import sys, mixformer_jax; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_the_package_is_the_command():
    command = [sys.executable, "-m", "mixformer_jax"]
    found = subprocess.run([*command, "--version"], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert found.stdout == f"mixformer-jax {mixformer_jax.__version__}\n"
    wrong = subprocess.run([*command, "trakc"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "see mixformer --help" in wrong.stderr


def test_load_is_found_on_demand():
    from mixformer_jax.tracking.tracker import load

    assert mixformer_jax.load is load
    assert "load" in dir(mixformer_jax)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = mixformer_jax.lode


def test_every_folder_of_modules_is_a_package():
    """A folder without __init__.py imports from a checkout, but import-linter does not see it."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert PACKAGE / "data" / "pool" in folders
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
