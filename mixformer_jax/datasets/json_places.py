"""JSON with its places: what is wrong is told with file and path, such as images[3].file_name."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixformer_jax.datasets.groundtruth import DatasetError, read_text


@dataclass(frozen=True)
class Place:
    """A value in a JSON file, and where it stands."""

    file: Path
    path: str
    value: Any

    def __getitem__(self, key: str) -> "Place":
        """A field that must be there."""
        found = self.get(key)
        if found is None:
            raise self.error(f"an object with {key!r}")
        return found

    def get(self, key: str) -> "Place | None":
        """A field; None where it is missing or null."""
        if not isinstance(self.value, dict):
            raise self.error("an object")
        path = f"{self.path}.{key}" if self.path else key
        return None if self.value.get(key) is None else Place(self.file, path, self.value[key])

    def items(self) -> Iterator["Place"]:
        """The members of a list."""
        if not isinstance(self.value, list):
            raise self.error("a list")
        return (Place(self.file, f"{self.path}[{index}]", value) for index, value in enumerate(self.value))

    def number(self, least: float = -math.inf) -> float:
        """A finite number of at least so much."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
            raise self.error("a number" if least == -math.inf else f"a number from {least:g} on")
        return float(value)

    def whole(self, least: float = -math.inf) -> int:
        """A whole number of at least so much."""
        value = self.number(least)
        if value != int(value):
            raise self.error("a whole number")
        return int(value)

    def text(self) -> str:
        """A text that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.error("a text")
        return self.value

    def error(self, expected: str) -> DatasetError:
        """What to raise where something else is expected here."""
        shown = json.dumps(self.value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return DatasetError(
            f"{self.file}, {self.path or 'top'}: expected {expected}, found {shown}; export anew, or mend it"
        )


def read_json(path: Path) -> Place:
    """The content of a file; DatasetError, with the line, where it is no JSON."""
    try:
        return Place(path, "", json.loads(read_text(path, "annotation file")))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {error.lineno}: no JSON ({error.msg}); export anew") from error
