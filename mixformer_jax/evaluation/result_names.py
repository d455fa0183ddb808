"""Which sequence a result file belongs to: toolkits name some sequences otherwise than the data sets do.

OTB       Jogging_1 here and in pytracking; Jogging-1 in pysot and its results; Jogging.1 in the got10k toolkit,
          which has Human4 for Human4_2, the only annotated target of that folder; names in lower case are common
UAV123    bike1 as published; uav_bike1 in pytracking's results
NfS       Gymnastics as published; nfs_Gymnastics in pytracking's results
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from mixformer_jax.evaluation.number_files import ResultsError

SIDE_FILES = ("_time", "_score")
# By the reader's name: what pytracking's files have before the published name.
PREFIXES: Mapping[str, str] = MappingProxyType({"nfs": "nfs_", "uav123": "uav_"})
_REPETITION = re.compile(r"(?P<name>.+)_(?P<number>\d+)", re.ASCII)


def printable(text: str) -> str:
    """The text in one line that can be written anywhere: line breaks and the like as escapes, such as `\\n`."""
    unfit = ("Cc", "Zl", "Zp", "Cs")  # control characters, ends of lines and paragraphs, halves of characters
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in unfit else c for c in text)


class SequenceNames:
    """The sequences of a data set by any of their names.

    Letters' case and the difference between `-`, `.` and `_` do not count, unless they tell two sequences apart.

    Args:
        names: of all sequences of the data set, also of those that are not looked at.
        benchmark: name of the data set's reader.
    """

    def __init__(self, names: Iterable[str], benchmark: str = "") -> None:
        self._names = frozenset(names)
        claims: dict[str, set[str]] = {}
        for name in self._names:
            for other in _other_names(name, benchmark):
                claims.setdefault(_plain(other), set()).add(name)
        self._by_other_name = {other: min(claimed) for other, claimed in claims.items() if len(claimed) == 1}
        self._side_files = frozenset(name + suffix for name in self._names for suffix in SIDE_FILES)

    def sequence(self, name: str) -> str | None:
        """The sequence that `name` stands for in the data set; None where there is none, or where two are as likely."""
        if name in self._names:
            return name
        return None if name in self._side_files else self._by_other_name.get(_plain(name))


class ResultFolder:
    """One tracker's folder, listed once. One that is not there is empty.

    Attributes:
        path: the folder.
        strangers: text files that belong to no sequence.
    """

    def __init__(self, path: Path, names: SequenceNames) -> None:
        self.path, self._names = path, names
        self.strangers: list[str] = []
        self._boxes: dict[str, list[Path]] = {}
        self._times: dict[str, list[Path]] = {}
        self._folders: dict[str, list[Path]] = {}
        for entry in sorted(path.iterdir()) if path.is_dir() else ():
            stem, suffix = entry.stem, entry.suffix
            name, _, kind = stem.rpartition("_")
            if suffix == ".txt" and (sequence := names.sequence(stem)) is not None:
                self._boxes.setdefault(sequence, []).append(entry)
            elif suffix == ".txt" and kind == "time" and (sequence := names.sequence(name)) is not None:
                self._times.setdefault(sequence, []).append(entry)
            elif suffix == ".txt" and f"_{kind}" not in SIDE_FILES:
                self.strangers.append(entry.name)
            elif (sequence := names.sequence(entry.name)) is not None and entry.is_dir():
                self._folders.setdefault(sequence, []).append(entry)

    def boxes(self, sequence: str) -> list[Path]:
        """The box files of a sequence, one a repetition; none where there is no result.

        Raises:
            ResultsError: two files that are both its result, under two names or in both layouts.
        """
        flat = self._boxes.get(sequence, [])
        nested = [found for folder in self._folders.get(sequence, []) if (found := self._repetitions(folder, sequence))]
        _check_one(sequence, [*flat, *(found[0] for found in nested)])
        return flat or (nested[0] if nested else [])

    def times(self, sequence: str) -> list[Path]:
        """Its files of times: one with a column a repetition, or one a repetition; none where no times were kept.

        Raises:
            ResultsError: two files that are both its times.
        """
        shared, single = [], []
        for folder in self._folders.get(sequence, []):
            for path in sorted(folder.glob("*_time.txt")):
                name = path.stem.removesuffix("_time")
                repetition = _REPETITION.fullmatch(name)
                if self._names.sequence(name) == sequence:
                    shared.append(path)
                elif repetition is not None and self._names.sequence(repetition["name"]) == sequence:
                    single.append(path)
        _check_one(sequence, shared)
        if shared or single:
            return shared or single
        _check_one(sequence, self._times.get(sequence, []))
        return self._times.get(sequence, [])

    def _repetitions(self, folder: Path, sequence: str) -> list[Path]:
        """<sequence>_001.txt, <sequence>_002.txt, ... in GOT-10k's layout."""
        found: dict[int, list[Path]] = {}
        for path in sorted(folder.glob("*.txt")):
            repetition = _REPETITION.fullmatch(path.stem)
            if repetition is not None and self._names.sequence(repetition["name"]) == sequence:
                found.setdefault(int(repetition["number"]), []).append(path)
        for paths in found.values():
            _check_one(sequence, paths)
        return [paths[0] for _, paths in sorted(found.items())]


def _other_names(name: str, benchmark: str) -> Iterable[str]:
    yield name
    if benchmark in PREFIXES:
        yield PREFIXES[benchmark] + name
    if benchmark == "otb100" and name == "Human4_2":
        yield "Human4"


def _plain(name: str) -> str:
    return re.sub(r"[-.]", "_", name).casefold()


def _check_one(sequence: str, paths: list[Path]) -> None:
    if len(paths) > 1:
        raise ResultsError(f"{paths[0]} and {paths[1]} are both results of {sequence}; remove one")
