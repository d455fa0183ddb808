"""Where the toolkits of the benchmarks look for result files, and so where a run leaves them.

    pytracking   <results>/<tracker>/<sequence>.txt, <sequence>_time.txt, <sequence>_score.txt
                 repetition k of several: <results>/<tracker>_<k, 3 digits, from 0>/...
    got10k       <results>/<tracker>/<sequence>/<sequence>_<repetition, 3 digits, from 1>.txt
                 <results>/<tracker>/<sequence>/<sequence>_time.txt, <sequence>_score.txt, a column a repetition
    vot          <results>/<tracker>/baseline/<sequence>/<sequence>_<anchor, 8 digits>.txt, in the order of the run; its
                 first line is 1, the code of an initialisation. <...>_time.value, <...>_confidence.value

LaSOT's, OTB's, UAV123's and NFS's files are pytracking's; TNL2K's toolkit and TrackingNet's server take the same. Only
VOT's toolkit knows scores; elsewhere they lie beside the times.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

Layout = Literal["pytracking", "got10k", "vot"]


LAYOUTS: Mapping[str, Layout] = MappingProxyType({"got10k": "got10k", "vot": "vot"})
"""By the reader's name, where it is not pytracking's."""


class ResultPaths(NamedTuple):
    """Files of one pass through a sequence.

    Attributes:
        boxes: x,y,w,h a line.
        times: seconds a frame.
        scores: confidence a frame.
        column: of `times` and `scores`, which repetitions share; None where they do not.
        starts_with_code: whether a 1 stands for the given box.
    """

    boxes: Path
    times: Path
    scores: Path
    column: int | None = None
    starts_with_code: bool = False


def layout_of(dataset: str) -> Layout:
    """The layout of a data set by its reader's name; pytracking's for those without a toolkit."""
    return LAYOUTS.get(dataset, "pytracking")


def tracker_folders(layout: Layout, tracker: str, repetitions: int) -> list[str]:
    """The folder of each repetition: in GOT-10k's layout they share one."""
    if layout != "pytracking" or repetitions == 1:
        return [tracker] * repetitions
    return [f"{tracker}_{repetition:03d}" for repetition in range(repetitions)]


def result_paths(layout: Layout, folder: Path, sequence: str, repetition: int = 0, anchor: int = 0) -> ResultPaths:
    """The files of a pass through a sequence.

    Args:
        layout: of the data set.
        folder: the tracker's, that `tracker_folders` names for the repetition.
        sequence: its name.
        repetition: counted from 0.
        anchor: the frame from which a run of VOT starts.
    """
    column = None
    if layout == "vot":
        stem = folder / "baseline" / sequence / f"{sequence}_{anchor:08d}"
        ends = (".txt", "_time.value", "_confidence.value")
    elif layout == "got10k":
        stem, column = folder / sequence / sequence, repetition
        ends = (f"_{repetition + 1:03d}.txt", "_time.txt", "_score.txt")
    else:
        stem, ends = folder / sequence, (".txt", "_time.txt", "_score.txt")
    boxes, times, scores = (stem.with_name(stem.name + end) for end in ends)
    return ResultPaths(boxes, times, scores, column, starts_with_code=layout == "vot")
