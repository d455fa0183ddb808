"""Sequences of MOTChallenge's layout, whole: their images, detections and ground truth."""

from pathlib import Path
from typing import NamedTuple

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.mot_files import DETECTIONS, GROUNDTRUTH, SEQINFO, has_seqinfo, read_seqinfo
from mixformer_jax.datasets.tracks import find_video
from mixformer_jax.media.sources import FrameSource
from mixformer_jax.media.video import open_source


class MotSequence(NamedTuple):
    """A sequence; what it lacks is None."""

    name: str
    folder: Path
    detections: Path | None
    groundtruth: Path | None

    @property
    def origin(self) -> float:
        """From which its pixels count: 1 in MOTChallenge's own form, else 0."""
        return 1.0 if has_seqinfo(self.folder) else 0.0

    def open(self) -> FrameSource:
        """Its frames, at the rate of its seqinfo.ini.

        Raises:
            DatasetError: no frames, or not as many or as large as seqinfo.ini says.
            SourceError: they cannot be read.
        """
        info = read_seqinfo(self.folder)
        place = self.folder / info.images
        if not place.is_dir():
            found = find_video(self.folder, f"{self.folder.resolve().name}.mp4", True)
            if found is None:
                raise DatasetError(f"{self.folder}: neither {info.images}/ with images nor a video; put it there")
            place = found
        source = open_source(place)
        source.name, source.fps = self.name, info.fps or source.fps
        if info.length is not None and source.num_frames != info.length:
            raise DatasetError(
                f"{self.folder / SEQINFO}: seqLength is {info.length}, but {place} has {source.num_frames} frames; "
                "unpack it anew, or mend seqLength"
            )
        if info.size is not None and source.size != info.size:
            (height, width), (told_height, told_width) = source.size, info.size
            raise DatasetError(
                f"{self.folder / SEQINFO}: imWidth and imHeight are {told_width}x{told_height}, but the frames of "
                f"{place} have {width}x{height}"
            )
        return source


def mot_sequences(root: Path) -> list[MotSequence]:
    """The sequences at a folder or up to two below it, such as those of MOT17 or of its `train`.

        train/SEQUENCE/img1/000001.jpg, ...     or a video
        train/SEQUENCE/det/det.txt              frame,-1,x,y,w,h,score
        train/SEQUENCE/gt/gt.txt                frame,track,x,y,w,h,considered,class,visibility; none in `test`
        train/SEQUENCE/seqinfo.ini              may be missing; with it pixels count from 1

    They come by name; none where the folder is of another kind. DatasetError for two of one name.
    """
    marks = (DETECTIONS, GROUNDTRUTH, Path(SEQINFO))
    folders = {
        path.parents[len(mark.parts) - 1]
        for mark in marks
        for depth in ("", "*/", "*/*/")
        for path in root.glob(f"{depth}{mark}")
    }
    found: dict[str, MotSequence] = {}
    for folder in sorted(folders):
        files = (path if (path := folder / mark).is_file() else None for mark in (DETECTIONS, GROUNDTRUTH))
        name = folder.resolve().name
        if name in found:
            raise DatasetError(f"{root}: two sequences are called {name}: {found[name].folder} and {folder}")
        found[name] = MotSequence(name, folder, *files)
    return [found[name] for name in sorted(found)]
