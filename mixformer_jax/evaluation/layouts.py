"""Where the toolkits of the benchmarks look for result files, and so where a run leaves them.

    pytracking   <results>/<tracker>/<sequence>.txt, <sequence>_time.txt, <sequence>_score.txt
                 repetition k of several: <results>/<tracker>_<k, 3 digits, from 0>/...
    got10k       <results>/<tracker>/<sequence>/<sequence>_<repetition, 3 digits, from 1>.txt
                 <results>/<tracker>/<sequence>/<sequence>_time.txt, <sequence>_score.txt, a column a repetition

LaSOT's, OTB's, UAV123's and NFS's files are pytracking's, and TrackingNet's server takes the same. Scores belong to no
toolkit; they lie beside the times.
"""

from pathlib import Path
from typing import Literal, NamedTuple

Layout = Literal["pytracking", "got10k"]


class ResultPaths(NamedTuple):
    """Files of one repetition on one sequence.

    Attributes:
        boxes: x,y,w,h a line.
        times: seconds a frame.
        scores: confidence a frame.
        column: of `times` and `scores`, which repetitions share; None where they do not.
    """

    boxes: Path
    times: Path
    scores: Path
    column: int | None


def layout_of(dataset: str) -> Layout:
    """The layout of a data set by its reader's name; pytracking's for those without a toolkit."""
    return "got10k" if dataset == "got10k" else "pytracking"


def tracker_folders(layout: Layout, tracker: str, repetitions: int) -> list[str]:
    """The folder of each repetition: in GOT-10k's layout they share one."""
    if layout == "got10k" or repetitions == 1:
        return [tracker] * repetitions
    return [f"{tracker}_{repetition:03d}" for repetition in range(repetitions)]


def result_paths(layout: Layout, folder: Path, sequence: str, repetition: int = 0) -> ResultPaths:
    """The files of a repetition, counted from 0, in the tracker's folder that `tracker_folders` names for it."""
    times, scores = f"{sequence}_time.txt", f"{sequence}_score.txt"
    if layout == "pytracking":
        return ResultPaths(folder / f"{sequence}.txt", folder / times, folder / scores, None)
    folder /= sequence
    return ResultPaths(folder / f"{sequence}_{repetition + 1:03d}.txt", folder / times, folder / scores, repetition)
