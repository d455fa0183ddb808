"""A scene with known geometry, rendered as colour and depth: a square that comes nearer before a slanted wall."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

WIDTH, HEIGHT, FOCAL = 96, 72, 80.0
SIDE_MM, FRAMES = 400.0, 24


class Shot(NamedTuple):
    colour: np.ndarray  # uint8 [h, w, 3], RGB
    depth_mm: np.ndarray  # uint16 [h, w], 0 where the camera measures nothing
    box_xywh: tuple[int, int, int, int]

    @property
    def frame(self):
        """Six channels, the depth as `media.images.depth_bytes` has it."""
        from mixformer_jax.media.images import depth_bytes

        return np.concatenate([self.colour, np.repeat(depth_bytes(self.depth_mm)[..., None], 3, axis=2)], axis=2)


def render(index: int, seed: int = 0) -> Shot:
    """Frame `index` of scene `seed`, by a pinhole camera."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    texture = rng.integers(150, 255, (16, 16, 3), dtype=np.uint8)
    # The wall is the plane z = 4000 + x: along the ray of column u, z = 4000 / (1 - (u - centre) / focal).
    columns = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL
    depth = np.broadcast_to(4000 / (1 - 0.5 * columns), (HEIGHT, WIDTH)).astype(np.uint16).copy()
    depth[: HEIGHT // 12] = 0  # where the sensor sees nothing
    z = 2200.0 - 20 * index
    side = round(FOCAL * SIDE_MM / z)
    left, top = 20 + 2 * index, 24 + index // 2
    colour[top : top + side, left : left + side] = cv2.resize(texture, (side, side), interpolation=cv2.INTER_NEAREST)
    depth[top : top + side, left : left + side] = round(z)
    return Shot(colour, depth, (left, top, side, side))


def write_depthtrack(root: Path, seeds: tuple[int, ...] = (0,), frames: int = FRAMES) -> Path:
    """Scenes in DepthTrack's layout."""
    for seed in seeds:
        folder, boxes = root / f"scene{seed}", []
        for part in ("color", "depth"):
            (folder / part).mkdir(parents=True)
        for index in range(frames):
            shot = render(index, seed)
            cv2.imwrite(str(folder / f"color/{index + 1:08d}.jpg"), shot.colour[..., ::-1])
            cv2.imwrite(str(folder / f"depth/{index + 1:08d}.png"), shot.depth_mm)
            boxes.append(",".join(map(str, shot.box_xywh)))
        (folder / "groundtruth.txt").write_text("\n".join(boxes) + "\n")
    return root
