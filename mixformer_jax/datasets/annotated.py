"""Which kind of annotations a folder holds, told by what is in it."""

import json
from pathlib import Path

from mixformer_jax.datasets.coco_video import is_coco
from mixformer_jax.datasets.cvat import cvat_files
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.label_studio import is_label_studio
from mixformer_jax.datasets.layout import GROUNDTRUTH
from mixformer_jax.datasets.mot import mot_folders

KINDS = ("folder", "cvat", "mot", "coco_video", "label_studio")
EXPECTED = (
    f"SEQUENCE/{GROUNDTRUTH} beside images or video.mp4; annotations.xml (CVAT for video 1.1); gt/gt.txt (MOT 1.1); a "
    "JSON file of COCO with track ids; or one of Label Studio"
)


def annotation_kind(root: str | Path) -> str:
    """The reader of one's own annotated videos: one of KINDS.

    Raises:
        DatasetError: no such folder, none of the kinds, or several.
    """
    root = Path(root)
    if not root.is_dir():
        what = "is a file; unpack it and give the folder" if root.is_file() else "no such folder"
        raise DatasetError(f"{root}: {what}, with the videos in it; expected {EXPECTED}")
    found: dict[str, Path] = {}
    for kind, paths in (
        ("folder", [*root.glob(GROUNDTRUTH), *sorted(root.glob(f"*/{GROUNDTRUTH}"))]),
        ("cvat", cvat_files(root)),
        ("mot", mot_folders(root)),
        *((kind, [path]) for path in _json_files(root) if (kind := _kind_of_json(path)) is not None),
    ):
        if paths:
            found.setdefault(kind, paths[0])
    if not found:
        archive = next(iter(sorted(root.glob("*.zip"))), None)
        hint = f" (unpack {archive.name})" if archive else ""
        raise DatasetError(f"{root}: no annotations found{hint}; expected {EXPECTED}")
    if len(found) > 1:
        listed = ", ".join(f"{kind} ({path})" for kind, path in found.items())
        raise DatasetError(f"{root}: annotations of several kinds: {listed}; say which: --dataset {' or '.join(found)}")
    return next(iter(found))


def _json_files(root: Path) -> list[Path]:
    return [
        path for pattern in ("*.json", "annotations/*.json") for path in sorted(root.glob(pattern)) if path.is_file()
    ]


def _kind_of_json(path: Path) -> str | None:
    """None for JSON of another kind; what is no JSON at all is taken to be meant."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{path}: no JSON ({error}); export anew, or move it away") from error
    return "coco_video" if is_coco(content) else "label_studio" if is_label_studio(content) else None
