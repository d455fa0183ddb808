"""The package as a whole: cheap to import, complete when built."""

import os
import shutil
import subprocess
import sys
import tomllib
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


def test_an_installed_package_brings_its_configs(tmp_path):
    """As the wheel lays them, which pyproject.toml says: beside the modules, with no checkout around."""
    pyproject = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    wheel = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["mixformer_jax"], "force-include": {"configs": "mixformer_jax/configs"}}
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, site / "mixformer_jax", ignore=ignored)
    shutil.copytree(PACKAGE.parent / "configs", site / "mixformer_jax" / "configs", ignore=ignored)
    elsewhere.mkdir()
    program = (
        "import sys\nfrom mixformer_jax import cli, config_files\n"
        f"assert config_files.BENCHMARK_SETTINGS.is_relative_to({str(site)!r})\n"
        "assert config_files.BENCHMARK_SETTINGS.is_file()\n"
        "for name, path in config_files.project_configs().items():\n"
        "    rows = config_files.load_study(name).rows if path.parent.name == 'tables' else None\n"
        "    config_files.load_config(f'{name}:{list(rows)[0]}' if rows else name)\n"
        "sys.exit(cli.main(['configs', 'show', 'mixvit_b']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == (PACKAGE.parent / "configs" / "mixvit_b.py").read_text()


@pytest.mark.parametrize(
    "name", ["eval/run.py", "eval/report.py", "eval/pack.py", "pretrain/run.py", "pretrain/study.py"]
)
def test_programs_of_the_checkout_are_commands(name):
    command = [sys.executable, name, "--what"]
    wrong = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("mixformer: error: the following arguments are required")
