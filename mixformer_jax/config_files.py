"""Config files, `configs/NAME.py` with get_config(), or get_config(row) where `NAME:ROW` names one of many experiments;
and changes to single settings, such as `--config.train.steps=100` and `--tracker.search_factor=5`."""

import ast
import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from mixformer_jax.typed_settings import ConfigError

CONFIG_PREFIX = "--config."
TRACKER_PREFIX = "--tracker."
_PACKAGE = Path(__file__).resolve().parent
# The project's configs: in an installed package, or in the checkout that the package runs from.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
BENCHMARK_SETTINGS = CONFIGS / "benchmarks.toml"
PROJECT_CONFIGS = tuple(CONFIGS / folder for folder in ("", "pretrain", "masks", "tables"))


def load_config(
    path: str | Path, overrides: Iterable[str] = (), defaults: Mapping[str, Any] | None = None
) -> ConfigDict:
    """Runs `get_config()` of a Python file, or `get_config(row)` where a row is named, and applies overrides.

    `path` is as in `find_config`, with `:ROW` behind it where the file has rows; the file may import its neighbours,
    and those of the project's configs. The file may leave out settings that have `defaults`, see `default_settings`.

    Raises ConfigError: no such file, one without get_config() or that does not run (with its line), or as
    `parse_overrides`.
    """
    file, row = split_row(path)
    found = find_config(file)
    return change_config(_run(found, lambda module: _get_config(module, found, row)), overrides, defaults)


def change_config(
    config: ConfigDict, overrides: Iterable[str], defaults: Mapping[str, Any] | None = None
) -> ConfigDict:
    """Applies overrides to a config, see `parse_overrides`; `None` is none where that is the default."""
    settings = dict(defaults or {}) | flatten(config.to_dict())
    for name, value in parse_overrides(overrides, settings, CONFIG_PREFIX).items():
        may_be_none = defaults is not None and name in defaults and defaults[name] is None
        _set(config, name, None if value == "None" and may_be_none else value)
    return config


def split_row(name: str | Path) -> tuple[str, str | None]:
    """`table5:plain` -> (`table5`, `plain`), `table5:plain@tiny` -> (`table5`, `plain@tiny`); None: no row is named."""
    named = re.fullmatch(r"(.+):(\w+(?:@\w+)?)", str(name))
    return (named[1], named[2]) if named else (str(name), None)


def load_study(name: str) -> Any:
    """`STUDY` of one of the project's tables: what rows it has; ConfigError, which lists them, for no such table."""
    known = {file: path for file, path in project_configs().items() if path.parent == CONFIGS / "tables"}
    if name not in known:
        raise ConfigError(f"{name}: no such table of the paper's studies; there are: {', '.join(known)}")
    return _run(known[name], lambda module: module.STUDY)


def find_config(name: str | Path) -> Path:
    """The config file at a path, or of the name of one of the project's, such as `mixvit_b`; ConfigError for no such
    file or name (the closest known ones are named)."""
    path, known = Path(name), project_configs()
    if str(name) in known:
        return known[str(name)]
    if path.is_file():
        return path
    close = difflib.get_close_matches(path.stem, known, n=3, cutoff=0.7)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    kind = "config file" if path.suffix == ".py" else "config"
    raise ConfigError(f"{name}: no such {kind}; {meant}`mixformer configs` lists those that come with the project")


def project_configs() -> dict[str, Path]:
    """The configs that come with the project, by name: of trackers, pre-trainings and masks, and tables of rows."""
    files = [path for folder in PROJECT_CONFIGS for path in sorted(folder.glob("*.py"))]
    return {path.stem: path for path in files if "def get_config(" in path.read_text(encoding="utf-8")}


def parse_overrides(overrides: Iterable[str], settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """New values of `settings` by dotted name, out of texts like `--config.train.steps=100` behind the `prefix`.

    The last one of a name counts. A value takes the type of the one that it replaces.

    Raises ConfigError: an unknown setting (the closest known ones are named), or a value of another type.
    """
    values = {}
    for override in overrides:
        name, equals, text = override.removeprefix(prefix).partition("=")
        if not (override.startswith(prefix) and equals and name):
            section = "SECTION." if prefix == CONFIG_PREFIX else ""
            raise ConfigError(f"{override}: expected {prefix}{section}SETTING=VALUE, with an equals sign and no spaces")
        values[name] = _parse(name, text, _current(name, settings, prefix), prefix)
    return values


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name: {"train": {"steps": 1}} -> {"train.steps": 1}."""
    settings: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        settings |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return settings


def default_settings(record_type: type, prefix: str = "") -> dict[str, Any]:
    """The fields of nested dataclasses by dotted name, with their defaults (None where they have none)."""
    settings: dict[str, Any] = {}
    hints = typing.get_type_hints(record_type)
    for field in dataclasses.fields(record_type):
        kinds = [kind for kind in typing.get_args(hints[field.name]) if kind is not type(None)]
        kind = kinds[0] if len(kinds) == 1 else hints[field.name]  # a section may be left out: Record | None
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            settings |= default_settings(kind, f"{prefix}{field.name}.")
        else:
            settings[f"{prefix}{field.name}"] = None if field.default is dataclasses.MISSING else field.default
    return settings


def _run(path: Path, use: Callable[[ModuleType], Any]) -> Any:
    """What `use` makes of a config file as a module."""
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file; expected one that defines get_config()")
    module = importlib.util.module_from_spec(spec)
    with _neighbours_of(path) as folders:
        try:
            spec.loader.exec_module(module)
            return use(module)
        except ConfigError:
            raise
        except Exception as error:
            looked = f"; looked in {', '.join(folders)}" if isinstance(error, ModuleNotFoundError) else ""
            own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
            line = f", line {own[-1]}" if own else ""
            words = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
            raise ConfigError(f"{path}{line}: does not run: {type(error).__name__}: {words}{looked}") from error


def _get_config(module: ModuleType, path: Path, row: str | None) -> ConfigDict:
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{path}: defines no get_config()")
    has_rows = "row" in inspect.signature(get_config).parameters
    if row is not None and not has_rows:
        raise ConfigError(f"{path}: get_config() takes no row, and :{row} asks for one")
    if row is None and has_rows:
        rows = ", ".join(getattr(getattr(module, "STUDY", None), "rows", ())) or "see the file"
        raise ConfigError(f"{path}: has rows; name one, {path.stem}:ROW, of: {rows}")
    config = get_config(row) if has_rows else get_config()
    if not isinstance(config, ConfigDict):
        found = type(config).__name__
        raise ConfigError(f"{path}: get_config() returned {found}; expected an ml_collections.ConfigDict")
    return config


@contextlib.contextmanager
def _neighbours_of(path: Path) -> Iterator[list[str]]:
    """Lets a config import files of its folder (and, of a link, of what it names), and then those of the project's.

    Gives the folders. Nothing stays imported: configs in two folders may have neighbours of one name.
    """
    own = [path.absolute().parent, path.resolve().parent]
    folders = [str(folder) for folder in dict.fromkeys([*own, *PROJECT_CONFIGS])]
    before, search = set(sys.modules), list(sys.path)
    sys.path[:0] = folders
    importlib.invalidate_caches()
    try:
        yield folders
    finally:
        sys.path[:] = search
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin is not None and str(Path(origin).parent) in folders:
                del sys.modules[name]


def _current(name: str, settings: Mapping[str, Any], prefix: str) -> Any:
    if name in settings:
        return settings[name]
    inside = sorted(known for known in settings if known.startswith(f"{name}."))
    if inside:
        raise ConfigError(f"{prefix}{name} is a section, not a setting; it has: {', '.join(inside)}")
    last = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, settings, n=3, cutoff=0.7)
    close += [known for known in settings if known.rpartition(".")[2] == last and known not in close]
    meant = f"did you mean {' or '.join(close)}?" if close else f"known settings: {', '.join(sorted(settings))}"
    raise ConfigError(f"{prefix}{name}: no such setting; {meant}")


def _parse(name: str, text: str, current: Any, prefix: str) -> Any:
    """`text` as the type of the value it replaces; where that is None, as a Python literal or as text."""
    try:
        if isinstance(current, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(current, int):
            return int(text)
        if isinstance(current, float):
            return float(text)
        if isinstance(current, (tuple, list)):
            value = ast.literal_eval(text)
            if not isinstance(value, (tuple, list)):
                raise ValueError(text)
            return type(current)(value)
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        kind = type(current).__name__
        raise ConfigError(f"{prefix}{name}={text}: expected {kind}, such as the present {current!r}") from error
    with contextlib.suppress(TypeError, ValueError, SyntaxError):
        return ast.literal_eval(text) if current is None else text
    return text


def _set(config: ConfigDict, name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        if section not in config:
            config[section] = ConfigDict()
        if not isinstance(config[section], ConfigDict):
            raise ConfigError(f"{section} is {config[section]!r}; expected a section, which has {key}")
        config = config[section]
    # A list may become longer, None a number; other types are checked above.
    with config.unlocked(), config.ignore_type():
        config[key] = value
