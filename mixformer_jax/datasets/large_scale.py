"""Data sets with parts to train on: LaSOT, GOT-10k, TrackingNet, TNL2K; DepthTrack, LasHeR and, as LasHeR, RGBT234.

Frames of the last three have a second stream behind RGB: depth as `media.images.read_depth` gives it, or thermal.
"""

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mixformer_jax.datasets import layout
from mixformer_jax.datasets.groundtruth import DatasetError, LengthError, read_groundtruth, read_names, read_text
from mixformer_jax.datasets.layout import PUBLISHED, SequenceFiles, published_dataset
from mixformer_jax.datasets.records import (
    Dataset,
    Fault,
    ImageFrames,
    MissingFrames,
    NumberedNames,
    TrackingSequence,
    two_streams,
)

logger = logging.getLogger(__name__)

# In the order of the toolkits' columns.
LASOT_ATTRIBUTES = ("IV", "POC", "DEF", "MB", "CM", "ROT", "BC", "VC", "SV", "FOC", "FM", "OV", "LR", "ARC")
TNL2K_ATTRIBUTES = (
    *("CM", "ROT", "DEF", "FOC", "IV", "OV", "POC", "VC", "SV"),
    *("BC", "MB", "ARC", "LR", "FM", "AS", "TC", "MS"),
)
LASOT_EXT_CLASSES = (
    *("atv", "badminton", "cosplay", "dancingshoe", "footbag", "frisbee", "jianzi", "lantern"),
    *("misc", "opossum", "paddle", "raccoon", "rhino", "skatingshoe", "wingsuit"),
)
LASOT_PER_CLASS, LASOT_EXT_PER_CLASS = 20, 10
LASOT_NAME = re.compile(r".+-\d+")  # class and number
# Frames are published as they are annotated, at 10 Hz.
GOT10K_FPS = 10.0
GOT10K_TRAIN_LENGTH = 9335
TRACKINGNET_CHUNKS = tuple(f"TRAIN_{number}" for number in range(12))
TRACKINGNET_SPLITS = ("train", "test", *TRACKINGNET_CHUNKS)
TNL2K_SIZES = {"train": 1300, "test": 700}
# Folders without sequences: the toolkit's, and its corrections of twelve ground truths.
TNL2K_NO_SEQUENCES = ("annos", "revised_annotations", "sequence_evaluation_config")
TNL2K_DEPTH = 3  # subset, part, sequence
# Of thermal sequences, of which LasHeR's `init.txt` is what trackers are started and scored by.
THERMAL_TRUTHS = {"lasher": ("init.txt", "visible.txt"), "rgbt234": ("visible.txt", "init.txt")}


def read_lasot(root: Path, split: str | None = None) -> Dataset:
    """LaSOT (Fan et al. 2019, http://vision.cs.stonybrook.edu/~lasot), by class and number: `train` (1,120), `test`
    (280), or all that are there. Folders of classes may be left out.

        airplane/airplane-1/img/00000001.jpg    frames
        airplane/airplane-1/groundtruth.txt     x,y,w,h a line
        airplane/airplane-1/full_occlusion.txt  0 or 1 for each frame, in one line with commas
        airplane/airplane-1/out_of_view.txt     likewise; `visible` is 0 in both, None without them
        training_set.txt, testing_set.txt       names, one a line; without them the published lists
        att/airplane-1.txt                      14 flags with commas, if copied from the evaluation toolkit

    Or the evaluation toolkit's annotations, which can be scored: annos/airplane-1.txt, annos/absent/airplane-1.txt
    (0 or 1 a line), annos/att/airplane-1.txt.
    """
    names = None
    if split is not None:
        listing = root / ("training_set.txt" if split == "train" else "testing_set.txt")
        names = read_names(listing) if listing.is_file() else _lasot_published(split)
    return _read_lasot("lasot", root, names, "no split, with a list of names if need be,")


def _lasot_published(split: str) -> list[str]:
    return [
        f"{kind}-{number}"
        for kind, of_test in layout.read_table("lasot_test.txt").items()
        for number in range(1, LASOT_PER_CLASS + 1)
        if (str(number) in of_test) == (split == "test")
    ]


def read_lasot_ext(root: Path, split: str | None = None) -> Dataset:
    """LaSOT-ext (Fan et al. 2021), 150 sequences, laid out as LaSOT."""
    names = [f"{kind}-{number}" for kind in LASOT_EXT_CLASSES for number in range(1, LASOT_EXT_PER_CLASS + 1)]
    return _read_lasot("lasot_ext", root, names, "the reader lasot, which takes what is there,")


def _read_lasot(dataset: str, root: Path, names: list[str] | None, mend: str) -> Dataset:
    """The sequences of these names, or all that are there, by the names of folders and files alone."""
    folders = layout.sub_folders(root)
    folders += [name for kind in folders if not LASOT_NAME.fullmatch(kind) for name in layout.sub_folders(root / kind)]
    there = [name for name in folders if LASOT_NAME.fullmatch(name)]
    is_toolkit = not there and (root / "annos").is_dir()
    if is_toolkit:
        there = [path.stem for path in (root / "annos").glob("*.txt") if LASOT_NAME.fullmatch(path.stem)]
    if names is None:
        names = sorted(there, key=lambda name: (name.rpartition("-")[0], int(name.rpartition("-")[2])))
    lack = f"{root}: {{}} sequences have no {'file' if is_toolkit else 'folder'}"
    layout.check_listed(names, set(there), lack, f"; use {mend} for a part of the data set")
    attributes = layout.find_attributes(root / ("annos/att" if is_toolkit else "att"), names)
    return published_dataset(dataset, root, names, functools.partial(_lasot_files, root, is_toolkit, attributes))


def _lasot_files(root: Path, is_toolkit: bool, attributes: Mapping[str, Path], name: str) -> SequenceFiles:
    in_class = root / name.rpartition("-")[0] / name
    folder = in_class if in_class.is_dir() else root / name
    if is_toolkit:
        place = root / "annos"
        groundtruth, absent = place / f"{name}.txt", [place / "absent" / f"{name}.txt"]
    else:
        place, groundtruth = folder, folder / "groundtruth.txt"
        absent = [folder / "full_occlusion.txt", folder / "out_of_view.txt"]
    return SequenceFiles(
        *(place, groundtruth, folder / "img", "%08d.jpg"),
        absent=absent,
        attributes=attributes.get(name),
        challenges=LASOT_ATTRIBUTES,
    )


def read_got10k(root: Path, split: str | None = None) -> Dataset:
    """GOT-10k (Huang et al. 2019, http://got-10k.aitestunion.com), one subset a root: GOT-10k/train, val or test.

        list.txt                                names of the sequences in order; without it: all folders with boxes
        GOT-10k_Val_000001/00000001.jpg ...     frames
        GOT-10k_Val_000001/groundtruth.txt      x,y,w,h a line; in the test subset of the first frame only: NaN after it
        GOT-10k_Val_000001/absence.label        1 where the target is absent
        GOT-10k_Val_000001/cover.label          0..8, eighths of the target in view
        GOT-10k_Val_000001/meta_info.ini        anno_fps, resolution, object_class, ...

    `visible` is absence.label == 0 and cover.label > 0, as in the official trainer; None without these files.

    Without a split, all sequences (`train_full` of the official trainer). `vottrain` (7,086) and `votval` (1,249) are
    the official trainer's parts of the train subset; both leave out 1,000 sequences on account of the VOT challenge.
    Their published lists count the lines of list.txt from 0, the challenge's list counts from 1. The trainer mixes the
    two, and so does this reader, to train on the same sequences.
    """
    listing = root / "list.txt"
    if listing.is_file():
        names = listing.read_text(encoding="utf-8").split()
        layout.check_listed(names, set(layout.sub_folders(root)), f"{listing}: {{}} listed sequences have no folder")
    else:
        names = sorted(path.parent.name for path in root.glob("*/groundtruth.txt"))
    if not names:
        subsets = [str(root / subset) for subset in ("train", "val", "test") if (root / subset).is_dir()]
        mend = f"give one subset as the root: {' or '.join(subsets)}" if subsets else "expected list.txt"
        raise DatasetError(f"{root}: no GOT-10k sequences; {mend}")
    if split is not None:
        if len(names) != GOT10K_TRAIN_LENGTH:
            of = f"the train subset with its {GOT10K_TRAIN_LENGTH} sequences"
            raise DatasetError(f"{root}: split {split} is a part of {of}; here are {len(names)}")
        positions = validation = read_numbers(PUBLISHED / "got10k_votval.txt")
        if split == "vottrain":
            left_out = {*validation, *read_numbers(PUBLISHED / "got10k_vot_exclude.txt")}
            positions = [position for position in range(len(names)) if position not in left_out]
        names = [names[position] for position in positions]
    return Dataset("got10k", root, names, functools.partial(_read_got10k_sequence, root))


def read_numbers(path: Path) -> list[int]:
    """Whole numbers of a split file, comments left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [int(word) for line in lines if not line.startswith("#") for word in line.split()]


def _read_got10k_sequence(root: Path, name: str) -> TrackingSequence:
    folder = root / name
    absence = folder / "absence.label"
    files = SequenceFiles(
        *(folder, folder / "groundtruth.txt", folder, "%08d.jpg"),
        is_hidden=not absence.is_file(),
        absent=[absence],
        cover=folder / "cover.label",
    )
    return replace(layout.read_files("got10k", name, files), fps=_got10k_rate(folder / "meta_info.ini"))


def _got10k_rate(path: Path) -> float:
    if not path.is_file():
        return GOT10K_FPS
    text = read_text(path, "meta_info.ini")
    rate = re.search(r"^anno_fps\s*[:=]\s*(.*?)\s*$", text, re.MULTILINE)
    if rate is None:
        return GOT10K_FPS
    match = re.fullmatch(r"([0-9.]+)\s*Hz", rate[1], re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise DatasetError(f"{path}: anno_fps is {rate[1]!r}; expected a rate as 10Hz")
    return float(match[1])


def read_trackingnet(root: Path, split: str | None = None) -> Dataset:
    """TrackingNet (Mueller et al. 2018, https://tracking-net.org), as its development kit lays it out.

        TRAIN_0/ ... TRAIN_11/, TEST/           twelve chunks to train on, and the test set
        TRAIN_0/anno/NAME.txt                   x,y,w,h a line; in TEST of the first frame only: NaN after it
        TRAIN_0/frames/NAME/0.jpg ...           frames, numbered from 0 without leading zeros

    `train` is all chunks that are there (with all twelve the paper's 30,132 sequences); `test`, or the name of a chunk,
    is that one. Without a split, `train` if there is a chunk of it, else `test`.
    """
    chunks = [chunk for chunk in TRACKINGNET_CHUNKS if (root / chunk).is_dir()]
    if split in TRACKINGNET_CHUNKS:
        chunks = [split]
    elif split == "test" or (split is None and not chunks):
        chunks = ["TEST"]
    keys = []
    for chunk in chunks:
        folder = root / chunk / "anno"
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; expected the boxes of the chunk, NAME.txt")
        keys += sorted(f"{chunk}/{path.stem}" for path in folder.glob("[!.]*.txt"))
    return published_dataset("trackingnet", root, keys, functools.partial(_trackingnet_files, root))


def _trackingnet_files(root: Path, key: str) -> SequenceFiles:
    chunk, _, name = key.partition("/")
    folder, groundtruth = root / chunk / "frames" / name, root / chunk / "anno" / f"{name}.txt"
    return SequenceFiles(folder, groundtruth, folder, "%d.jpg", first=0, is_hidden=chunk == "TEST")


def read_tnl2k(root: Path, split: str | None = None) -> Dataset:
    """TNL2K (Wang et al. 2021, https://github.com/wangxiao5791509/TNL2K_evaluation_toolkit), sequences at any place
    below `root`: `train` (1,300) or `test` (700), with a warning for another number, or all that are there.

        TNL2K_test_subset/Bird_28-Done/
            imgs/00001.png ...                  frames, .png or .jpg, named and numbered differently in each sequence
            groundtruth.txt                     x,y,w,h a line; 0,0,0,0 where the target is absent
            language.txt                        what the target is; not read
        TNL2K_train_subset/TNL2k_train_subset_p1/Arrow_Video_ZZ04_done/...

    The subsets may also be called `train` and `test`, be in parts, or be `root` itself. The evaluation toolkit's
    annotations may lie beside the sequences, and can be scored alone:

        annos/gt_rect/Bird_28-Done.txt          as groundtruth.txt, read where the sequence has no folder
        annos/absent/Bird_28-Done.txt           1 where the target is absent, a line a frame
        annos/att/Bird_28-Done_attribute.txt    17 flags with commas or blanks, after a 1 for all in the Python version
        sequence_evaluation_config/TNL2K_testing_set.txt    names of the toolkit's 700, a line each
    """
    folders = _tnl2k_folders(root, split)
    names = sorted(folders) or _tnl2k_annotated(root, split)
    if split is not None and names and len(names) != TNL2K_SIZES[split]:
        logger.warning("%s: %d sequences; TNL2K's %s subset has %d", root, len(names), split, TNL2K_SIZES[split])
    attributes = layout.find_attributes(root / "annos" / "att", names)
    return published_dataset("tnl2k", root, names, functools.partial(_tnl2k_files, root, folders, attributes))


def _tnl2k_folders(root: Path, split: str | None) -> dict[str, Path]:
    """The folder of each sequence; DatasetError for the other subset alone, or two sequences of one name."""
    tops = [root]
    if split is not None:
        (other,) = TNL2K_SIZES.keys() - {split}
        subsets = {
            each: [name for name in layout.sub_folders(root) if _is_tnl2k_subset(name, each)] for each in TNL2K_SIZES
        }
        if not subsets[split] and (subsets[other] or _is_tnl2k_subset(root.resolve().name, other)):
            raise DatasetError(f"{root}: holds TNL2K's {other} subset; expected the {split} subset")
        tops = [root / name for name in subsets[split]] or tops
    found: dict[str, Path] = {}
    for folder in (each for top in tops for each in _tnl2k_below(top, TNL2K_DEPTH)):
        if folder.name in found:
            raise DatasetError(f"{found[folder.name]} and {folder}: two sequences of one name; move one of them away")
        found[folder.name] = folder
    return found


def _is_tnl2k_subset(folder: str, split: str) -> bool:
    return re.fullmatch(rf"(tnl2k_)?{split}(_subset)?(_p\d+)?", folder, re.IGNORECASE) is not None


def _tnl2k_below(folder: Path, depth: int) -> list[Path]:
    found = []
    for each in (folder / name for name in layout.sub_folders(folder) if name not in TNL2K_NO_SEQUENCES):
        # Frames alone count: a forgotten ground truth shall be an error.
        if (each / "groundtruth.txt").is_file() or (each / "imgs").is_dir():
            found.append(each)
        elif depth > 1:
            found += _tnl2k_below(each, depth - 1)
    return found


def _tnl2k_annotated(root: Path, split: str | None) -> list[str]:
    """Names of the sequences in the toolkit's annotations and, for a split, in its list."""
    annotations = root / "annos" / "gt_rect"
    names = sorted(path.stem for path in annotations.glob("*.txt"))
    if split is None or not names:
        return names
    listing = root / "sequence_evaluation_config" / f"TNL2K_{'testing' if split == 'test' else 'train'}_set.txt"
    listed = read_names(listing)
    layout.check_listed(listed, set(names), f"{annotations}: {{}} sequences of {listing.name} have no file")
    return listed


def _tnl2k_files(root: Path, folders: Mapping[str, Path], attributes: Mapping[str, Path], name: str) -> SequenceFiles:
    annos, folder = root / "annos", folders.get(name)
    return SequenceFiles(
        folder or root,
        folder / "groundtruth.txt" if folder else annos / "gt_rect" / f"{name}.txt",
        (folder or root / name) / "imgs",
        "%05d.png or .jpg",
        is_listed=True,
        empty_is_absent=True,
        absent=[annos / "absent" / f"{name}.txt"],
        attributes=attributes.get(name),
        challenges=TNL2K_ATTRIBUTES,
        attribute_prefix=["1"],
    )


def read_depthtrack(root: Path, split: str | None = None) -> Dataset:
    """DepthTrack (Yan et al. 2021, https://github.com/xiaozai/DeT), its training or its test set.

    adapter01_indoor/color/00000001.jpg ...     frames
    adapter01_indoor/depth/00000001.png ...     millimetres, 16 bits
    adapter01_indoor/groundtruth.txt            x,y,w,h a line; nan,nan,nan,nan where the target is absent
    """
    folder = root / "sequences" if (root / "sequences").is_dir() else root  # of a workspace of the VOT toolkit
    names = layout.sub_folders_with(folder, "groundtruth.txt", "color")
    return Dataset("depthtrack", root, names, functools.partial(_read_depthtrack_sequence, folder))


def _read_depthtrack_sequence(root: Path, name: str) -> TrackingSequence:
    folder = root / name
    files = SequenceFiles(folder, folder / "groundtruth.txt", folder / "color", "%08d.jpg")
    return _read_pair("depthtrack", name, files, folder / "depth", "%08d.png")


def read_thermal(dataset: str, root: Path, split: str | None = None) -> Dataset:
    """LasHeR (Li et al. 2022, https://github.com/BUGPLEASEOUT/LasHeR; the folder of its training or test set is a
    root) and RGBT234 (Li et al. 2019): colour and thermal images that lie over each other.

        2girl/visible/v000000.jpg ...       frames, taken in the natural order of their names
        2girl/infrared/i000000.jpg ...      as many
        2girl/init.txt, visible.txt, infrared.txt   x,y,w,h a line

    The boxes are LasHeR's of init.txt; RGBT234's of visible.txt, and `thermal_xywh` those of infrared.txt, where that
    is there.
    """
    names = layout.sub_folders_with(root, *THERMAL_TRUTHS[dataset], "visible")
    return Dataset(dataset, root, names, functools.partial(_read_thermal_sequence, dataset, root))


def _read_thermal_sequence(dataset: str, root: Path, name: str) -> TrackingSequence:
    folder, truths = root / name, THERMAL_TRUTHS[dataset]
    truth = next((folder / file for file in truths if (folder / file).is_file()), folder / truths[0])
    files = SequenceFiles(folder, truth, folder / "visible", "%06d.jpg", is_listed=True)
    sequence, thermal = _read_pair(dataset, name, files, folder / "infrared", files.pattern), folder / "infrared.txt"
    if dataset != "rgbt234" or not thermal.is_file():
        return sequence
    return replace(sequence, thermal_xywh=read_groundtruth(thermal, len(sequence), published=True))


def _read_pair(dataset: str, name: str, files: SequenceFiles, second: Path, pattern: str) -> TrackingSequence:
    """A sequence with the images of its second stream, a folder."""
    sequence = layout.read_files(dataset, name, files)
    if not isinstance(sequence.frame, ImageFrames):
        return sequence
    try:
        beside = layout.find_frames(replace(files, frames=second, pattern=pattern), len(sequence))
    except LengthError as error:
        found, expected = len(layout.image_names(second)), f"{len(sequence)}, one for every frame in {files.frames}"
        raise LengthError(f"{second}: {found} images; expected {expected}") from error
    faults = sequence.faults + (() if isinstance(beside, MissingFrames) else _misnumbered(sequence.frame, beside))
    frame = two_streams(sequence.frame, beside, is_depth=dataset == "depthtrack")
    return replace(sequence, frame=frame, faults=faults)


def _misnumbered(colour: ImageFrames, second: ImageFrames) -> tuple[Fault, ...]:
    """Where frames that are paired in their order do not have the same numbers: one of them may be missing."""
    if isinstance(colour.names, NumberedNames):
        return ()
    ours, theirs = ([int(re.sub(r"\D", "", name) or 0) for name in frames.names] for frames in (colour, second))
    shifts = np.subtract(ours, theirs)
    if (shifts == shifts[0]).all():
        return ()
    index = int(np.flatnonzero(shifts != shifts[0])[0])
    what = f"{second.names[index]} is paired with {colour.names[index]}: frames are missing, or not numbered alike"
    return (Fault("frame numbers", str(second.folder), what),)
