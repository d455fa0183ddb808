"""Settings as frozen dataclasses: types and ranges are declared beside the fields, and checked here alone.

    @dataclasses.dataclass(frozen=True)
    class Run(TypedSettings):
        steps: Count = 1000
        decay_at: Share = 0.8
        mesh: tuple[int, ...] = (-1, 1, 1)

Values are taken strictly: 12.0 or True is no count, a number is finite; a whole number does where any number does.
"""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

_INT_LIMIT = 2**31  # what JAX's whole numbers hold
_UNIONS = (typing.Union, types.UnionType)

Record = TypeVar("Record")
Settings = TypeVar("Settings", bound="TypedSettings")


class ConfigError(ValueError):
    """A setting that does not exist or has a value that cannot work."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`; without an end that is open. NaN is in none."""

    least: int | float = -math.inf
    most: int | float = math.inf
    open_least: bool = False
    open_most: bool = False

    def __contains__(self, value: int | float) -> bool:
        above = self.least < value if self.open_least else self.least <= value
        return above and (value < self.most if self.open_most else value <= self.most)

    def __str__(self) -> str:
        least = f"{'above' if self.open_least else 'at least'} {self.least:g}"
        most = f"{'below' if self.open_most else 'at most'} {self.most:g}"
        return " and ".join(text for end, text in ((self.least, least), (self.most, most)) if math.isfinite(end))


Count = Annotated[int, Range(1)]
NaturalNumber = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open_least=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
LogStrength = Annotated[float, Range(0, 5)]  # of a factor drawn within exp(+-strength)
ShareBelowOne = Annotated[float, Range(0, 1, open_most=True)]
ShareAboveZero = Annotated[float, Range(0, 1, open_least=True)]
InnerShare = Annotated[float, Range(0, 1, open_least=True, open_most=True)]

# Of crops, in trackers and data alike. Upper ends, for headers of files: beyond what anybody trains, within what a
# machine can try.
CropSide = Annotated[int, Range(16, 2048)]
CropFactor = Annotated[float, Range(1, 32)]
OnlineTemplates = Annotated[int, Range(0, 64)]
# What is read of a frame that has a second stream, such as depth, in three channels behind RGB.
Streams = Literal["colour", "second", "both"]


def refuse(cases: Mapping[str, object]) -> None:
    """Raises ConfigError with the first text whose condition holds."""
    for text, holds in cases.items():
        if holds:
            raise ConfigError(text)


@dataclasses.dataclass(frozen=True)
class TypedSettings:
    """A record of settings; whatever makes one, it has values of the declared types and ranges.

    `section` is where a subclass stands in configs and file headers, for messages.
    """

    section = ""

    def __post_init__(self) -> None:
        """Raises ConfigError for the first value that is of another type or out of its range."""
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, _checked(hint, getattr(self, name), name))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[Settings], values: Any) -> Settings:
        """See `dataclass_from_mapping`."""
        return dataclass_from_mapping(cls, values, cls.section)


def dataclass_from_mapping(record_type: type[Record], values: Any, section: str = "") -> Record:
    """Builds a settings record, sections within it included; lists count as tuples.

    `section` says in messages where the values stand, such as `data.mix`.

    Raises ConfigError: no mapping, unknown keys (the closest known ones are named), missing ones, or refused values.
    """
    fields = dataclasses.fields(record_type)  # type: ignore[arg-type]
    known, title = [field.name for field in fields], section or record_type.__name__
    if not isinstance(values, Mapping):
        raise ConfigError(f"{title} is {values!r}; expected a section with {', '.join(known)}")
    unknown = []
    for key in (key for key in values if key not in known):
        close = difflib.get_close_matches(str(key), known, n=1)
        unknown.append(f"{key!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    if unknown:
        raise ConfigError(f"{record_type.__name__} has no setting {', '.join(unknown)}; it has: {', '.join(known)}")
    needed = [field.name for field in fields if default_of(field) is dataclasses.MISSING and field.name not in values]
    if needed:
        raise ConfigError(f"{title} lacks {', '.join(needed)}")
    prefix, hints = f"{section}." if section else "", typing.get_type_hints(record_type, include_extras=True)
    return record_type(**{key: _checked(hints[key], value, f"{prefix}{key}") for key, value in values.items()})


def default_of(field: dataclasses.Field) -> Any:
    """Its default value; `dataclasses.MISSING` where it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _checked(hint: Any, value: Any, name: str) -> Any:
    """The value as its declared type has it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        (kind,) = (each for each in arguments if each is not type(None))
        return None if value is None else _checked(kind, value, name)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else dataclass_from_mapping(hint, value, name)
    if origin is tuple and isinstance(value, (tuple, list)):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(_checked(kind, each, f"{name}[{index}]") for index, (kind, each) in enumerate(pairs))
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _checked(arguments[1], each, f"{name}.{key}") for key, each in value.items()}
    elif origin is Literal or hint in (bool, str):
        if isinstance(value, bool if hint is bool else str) and (origin is None or value in arguments):
            return value
    else:
        kind, allowed = arguments if origin is Annotated else (hint, Range())
        number = _number(kind, value)
        if number is not None and number in allowed:
            return number
    large = f", below {_INT_LIMIT}" if isinstance(value, numbers.Integral) and abs(int(value)) >= _INT_LIMIT else ""
    raise ConfigError(f"{name} is {value!r}; expected {_expected(hint)}{large}")


def _number(kind: Any, value: Any) -> int | float | None:
    """The value as an `int` or a `float`; None where it is none, or another kind is wanted."""
    if kind not in (int, float) or isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        whole = int(value)
        return None if abs(whole) >= _INT_LIMIT else whole if kind is int else float(whole)
    return float(value) if kind is float and isinstance(value, numbers.Real) and math.isfinite(value) else None


def _expected(hint: Any) -> str:
    """A type in words: `a whole number, at least 1`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{_expected(arguments[0])}, {arguments[1]}"
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        count = "values" if arguments[-1] is ... else f"{len(arguments)} values"
        return f"a tuple of {count}, each {_expected(arguments[0])}"
    if origin is not None:
        return f"a section of sections, each with {', '.join(each.name for each in dataclasses.fields(arguments[1]))}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]
