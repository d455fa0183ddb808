"""How a model tracks on a benchmark, where that differs from how it tracks elsewhere: `configs/benchmarks.toml`."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixformer_jax.models.config import ConfigError, TrackerConfig, dataclass_from_mapping

BenchmarkSettings = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Tracker settings by model and benchmark."""


def read_benchmark_settings(path: str | Path) -> BenchmarkSettings:
    """Reads tracker settings by model and benchmark.

    The file has a table a model, and in it an inline table of `TrackerConfig` settings a benchmark.

    Raises:
        ConfigError: no such file, no TOML, or settings that do not exist or cannot work (both names are given).
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected the settings of benchmarks") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    for model, benchmarks in tables.items():
        for benchmark, settings in benchmarks.items() if isinstance(benchmarks, dict) else [(None, benchmarks)]:
            if not isinstance(settings, dict):
                where = f"[{model}]" if benchmark is None else f"[{model}] {benchmark}"
                expected = "expected [MODEL] and BENCHMARK = { SETTING = VALUE }"
                raise ConfigError(f"{path}: {where} is {settings!r}; {expected}")
            try:
                dataclass_from_mapping(TrackerConfig, settings)
            except ConfigError as error:
                raise ConfigError(f"{path}: [{model}] {benchmark}: {error}") from error
    return tables


def settings_on(tables: BenchmarkSettings, benchmark: str, settings_of: str | None = None) -> Mapping[str, Any]:
    """Tracker settings by model on one benchmark; a model without any is not in it.

    Args:
        tables: of all benchmarks.
        benchmark: by its reader's name.
        settings_of: a table that has to be there.

    Raises:
        ConfigError: it is not, or says nothing of this benchmark.
    """
    found = {model: benchmarks[benchmark] for model, benchmarks in tables.items() if benchmark in benchmarks}
    if settings_of is not None and settings_of not in tables:
        raise ConfigError(f"--settings-of {settings_of}: not in configs/benchmarks.toml; it has {', '.join(tables)}")
    if settings_of is not None and settings_of not in found:
        has = ", ".join(tables[settings_of])
        raise ConfigError(f"--settings-of {settings_of}: has no {benchmark} in configs/benchmarks.toml, but {has}")
    return found
