"""Tracker settings from a command line: `--tracker.search_factor=5.05`."""

from collections.abc import Iterable

from mixformer_jax.models.config import ConfigError, TrackerConfig

PREFIX = "--tracker."


def override_settings(settings: TrackerConfig, overrides: Iterable[str]) -> TrackerConfig:
    """Settings with some changed by texts such as `--tracker.search_factor=5.05`.

    Raises:
        ConfigError: no equals sign, an unknown setting (the closest known one is named), or a value that is no number
            or cannot work.
    """
    defaults, values = TrackerConfig().to_dict(), settings.to_dict()
    for override in overrides:
        name, equals, text = override.removeprefix(PREFIX).partition("=")
        if not (override.startswith(PREFIX) and equals and name):
            raise ConfigError(f"{override}: expected {PREFIX}SETTING=VALUE, with an equals sign and no spaces")
        # An unknown name is the record's to refuse, with the closest known one.
        kind = type(defaults.get(name, ""))
        try:
            values[name] = kind(text)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise ConfigError(f"{override}: expected {expected}, such as {defaults[name]}") from None
    return TrackerConfig.from_dict(values)
