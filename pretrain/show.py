"""Draws a sheet of masked pictures of a clip and their reconstructions by a pre-trained autoencoder.

    python pretrain/show.py runs/trackmae_tiny --out sheet.png
    python pretrain/show.py runs/trackmae_tiny --video clip.mp4 --boxes groundtruth.txt --out sheet.png

Without a video it takes the clip of `mixformer demo`. Templates come from the first frame with a box, the masked search
regions from frames spread over the clip, both cut as in the run's training, without jitter.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float64, UInt8

from mixformer_jax.cli.demo import DemoClip
from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.pretrained import load_autoencoder
from mixformer_jax.crops import context_crop
from mixformer_jax.datasets.groundtruth import read_groundtruth
from mixformer_jax.media.images import write_image
from mixformer_jax.media.video import open_source
from mixformer_jax.training.experiment import RunConfig
from mixformer_jax.training.pretraining import MaskedPretraining, PretrainExperiment

Frames = dict[int, UInt8[np.ndarray, "h w 3"]]


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a pre-training on tracking data")
    parser.add_argument("--video", type=Path, metavar="FILE", help="a video or a folder of images")
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="its target: x,y,w,h a line")
    parser.add_argument("--rows", type=int, default=6, help="search regions (6)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    args = parser.parse_args(arguments)
    if (args.video is None) != (args.boxes is None):
        parser.error("--video and --boxes go together")
    if args.rows < 1:
        parser.error(f"--rows {args.rows}: expected at least 1")
    try:
        frames, boxes_xywh = _frames(args.video, args.boxes, args.rows)
        write_image(args.out, restore(args.run, frames, boxes_xywh))
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"sheet  {args.out}")
    return 0


def restore(run: Path, frames: Frames, boxes_xywh: Float64[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """The sheet: templates from the first of `frames`, search regions from the others.

    Raises ValueError for what is no run's folder, no autoencoder, or was not trained on tracking data.
    """
    found, record = load_autoencoder(find_weights(run)), run / "config.json"
    if not record.is_file():
        raise ValueError(f"{run}: no config.json, which says how to cut; expected the folder of a pre-training")
    data = json.loads(record.read_text())["data"]
    if data is None:
        raise ValueError(f"{run}: trained on single images, and there are no crops around a target to restore")
    crops, model = data["crops"], found.config.model
    first, *others = sorted(frames)

    def crop(index: int, factor: float, size: int) -> UInt8[np.ndarray, "s s 3"]:
        return context_crop(frames[index], boxes_xywh[index], factor, size).pixels

    batch = {"search": np.stack([crop(index, crops["search_factor"], model.search_size) for index in others])}
    if slots := found.config.num_templates:
        template = crop(first, crops["template_factor"], model.template_size)
        batch["templates"] = np.tile(template, (len(others), slots, 1, 1, 1))
    # No samples and no schedule are needed here.
    objective = MaskedPretraining(PretrainExperiment(found.config, None, None, RunConfig()))
    shown = {name: np.asarray(value) for name, value in jax.jit(objective.show)(found.variables, batch).items()}
    return objective.draw(batch, shown)


def _frames(video: Path | None, boxes: Path | None, rows: int) -> tuple[Frames, Float64[np.ndarray, "n 4"]]:
    """The first frame with a box, and `rows` more; and the boxes of all frames."""
    if video is None or boxes is None:
        clip = DemoClip()
        boxes_xywh = clip.boxes_xywh
        return {index: clip[index] for index in _spread(boxes_xywh, rows)}, boxes_xywh
    boxes_xywh = read_groundtruth(boxes)
    wanted = set(_spread(boxes_xywh, rows))
    with open_source(video) as source:
        frames = {index: frame for index, frame in enumerate(source) if index in wanted}
    missing = sorted(wanted - set(frames))
    if missing:
        raise ValueError(f"{video}: has no frame {missing[0]}, and {boxes} has boxes for {len(boxes_xywh)} frames")
    return frames, boxes_xywh


def _spread(boxes_xywh: Float64[np.ndarray, "n 4"], rows: int) -> list[int]:
    known = np.flatnonzero(np.isfinite(boxes_xywh).all(1) & (boxes_xywh[:, 2:] > 0).all(1))
    if len(known) <= rows:
        raise ValueError(f"{len(known)} frames with a box; expected more than {rows}")
    return [int(index) for index in known[np.linspace(0, len(known) - 1, rows + 1).astype(int)]]


if __name__ == "__main__":
    sys.exit(main())
