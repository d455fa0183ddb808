"""Faults of published data sets that everybody has, with their sources; readers, reports and `data check` name them.

A fault that is not listed here may lie in the copy of the data set at hand: an unpacking that broke off, say.
"""

from collections.abc import Sequence
from typing import NamedTuple

ANY = "*"  # every sequence of a data set


class KnownFault(NamedTuple):
    """Something wrong with a data set as it is published."""

    reader: str  # of the data set, by name
    sequence: str  # its name, or ANY
    kind: str  # of the `records.Fault` that it explains. `length`: numbers of boxes, frames or result rows that differ
    what: str
    source: str  # where it was reported; `OWNER/REPOSITORY#NUMBER` is an issue on GitHub
    box_xywh: tuple[float, float, float, float] | None = None  # the row, where the fault is one

    def __str__(self) -> str:
        return f"known: {self.what} ({self.source})"


def known_fault(reader: str, sequence: str, kind: str, box_xywh: Sequence[float] | None = None) -> KnownFault | None:
    """The entry of the table that explains a fault; None where none does."""
    box = None if box_xywh is None else tuple(map(float, box_xywh))
    for known in KNOWN_FAULTS:
        is_kind = (known.reader, known.kind) == (reader, kind)
        if is_kind and known.sequence in (sequence, ANY) and known.box_xywh in (None, box):
            return known
    return None


_LASOT_ROWS = {
    "lion-5": (553, (1, 1, -1, -1)),
    "tiger-6": (118, (613, 731, 247, -11)),
    "person-7": (2111, (2, 2, -1, -1)),
    "pool-14": (146, (1, 1, -1, -1)),
    "tank-17": (627, (1125, 730, 155, -10)),
}
_NFS_ONE_FRAME_MORE = (
    *("Gymnastics", "Skydiving", "airtable_3", "basketball_2", "beach_flipback_person"),
    *("bowling_ball", "motorcross", "parkour", "shuffletable_4", "soccer_ball_2"),
)
# Boxes and frames of the first release.
_TNL2K_FIRST_RELEASE = {
    "Assassin_video_5-Done": (1080, 785),
    "BF5_FireGUN_video_01_done": (1266, 633),
    "Baseball_game_002-Done": (714, 713),
    "Boat_video1-Done": (570, 470),
    "Cat_BBC_video_03-Done": (145, 133),
    "catNight_video_B04_done": (1518, 151),
    "Fight_video_02-Done": (916, 914),
    "Fight_video_04-Done": (817, 816),
    "Joker_video_X02_done": (2139, 1268),
    "maliao_4-Done": (1609, 1608),
    "monitor_bikeyellow": (930, 929),
    "videoPlayer_video_01_done": (2009, 2008),
}

_PADDLE = "the data set has 2,703 boxes, and the evaluation toolkit 2,500"
_MINUS_ONE = "some copies have -1,-1,-1,-1 where the target is absent"
_VAL_136 = "published with 1920 x 1080, and from frame 112 on with 1280 x 720"
_DOG_2 = "dog_2 at 30 fps is published with the video of dog, 1,030 frames, and its own 594 boxes"
_TIGER1 = "354 frames and boxes, of which the toolkit leaves out the first 5, so that results have 349 rows"
_GOT10K_136_SOURCE = "got-10k/toolkit#25, visionml/pytracking#98"

KNOWN_FAULTS: tuple[KnownFault, ...] = (
    *(
        KnownFault(
            *("lasot", name, "box empty", f"published so, in row {row}"),
            source="HengLan/LaSOT_Evaluation_Toolkit#10, #19",
            box_xywh=box,
        )
        for name, (row, box) in _LASOT_ROWS.items()
    ),
    KnownFault("lasot", "paddle-1", "length", _PADDLE, "HengLan/LaSOT_Evaluation_Toolkit#18"),
    KnownFault("got10k", ANY, "box empty", _MINUS_ONE, "got-10k/toolkit#10", (-1, -1, -1, -1)),
    KnownFault("got10k", ANY, "box outside", "GOT-10k has boxes outside the image", "got-10k/toolkit#10"),
    KnownFault("got10k", "GOT-10k_Val_000136", "frame size", _VAL_136, _GOT10K_136_SOURCE),
    *(
        KnownFault(
            "nfs", name, "length", "published at 30 fps with one frame more than boxes", "visionml/pytracking#160"
        )
        for name in _NFS_ONE_FRAME_MORE
    ),
    KnownFault("nfs", "dog_2", "wrong video", _DOG_2, "got-10k/toolkit#47"),
    KnownFault("otb100", "Tiger1", "length", _TIGER1, "StrangerZhang/pysot-toolkit#6"),
    KnownFault(
        "otb100", "ClifBar", "length", "472 frames, and 329 rows in some published results", "alanlukezic/csr-dcf#15"
    ),
    *(
        KnownFault(
            *("tnl2k", name, "length"),
            f"first {boxes:,} boxes for {frames:,} frames; revised_annotations.zip of its toolkit mends it",
            "wangxiao5791509/TNL2K_evaluation_toolkit#8",
        )
        for name, (boxes, frames) in _TNL2K_FIRST_RELEASE.items()
    ),
)
