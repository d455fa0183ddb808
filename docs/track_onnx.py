"""Tracks one target with an exported tracker, by onnxruntime, numpy and OpenCV alone; a lost target is not looked for.

mixformer export --format onnx --out exported && python docs/track_onnx.py exported my.mp4 120,80,60,90
"""

import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


class ExportedTracker:
    def __init__(self, folder: Path, frame: np.ndarray, box_xywh: np.ndarray) -> None:
        """`box_xywh` marks the target on an RGB frame, in pixels."""
        self.record = json.loads((folder / "onnx.json").read_text())
        self.settings, self.box = self.record["tracker"], np.asarray(box_xywh, np.float32)
        names = ("encode_templates", "locate")
        self.encode, self.locate = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in names)
        self.margin, share = self.settings["clip_margin"], self.settings["clip_share"]
        if share:  # small targets may have small boxes
            self.margin = float(np.clip(share * self.box[2:].min(), min(1, self.margin), self.margin))
        crop, slots = self.crop(frame, "template")[0], self.record["template_slots"]
        self.templates, self.filled, self.frames = np.stack([crop] * slots)[None], np.arange(slots)[None] < 2, 0
        self.remember()

    def crop(self, frame: np.ndarray, kind: str) -> tuple[np.ndarray, int]:
        """A square around the box, black beyond the frame, resized for the network, and its side in the frame."""
        (x, y, w, h), size = self.box.tolist(), self.record[f"{kind}_size"]
        side = math.ceil(math.sqrt(w * h) * self.settings[f"{kind}_factor"])
        left, top = round(x + w / 2 - side / 2), round(y + h / 2 - side / 2)
        inside = frame[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
        inside = inside[: max(frame.shape[0] - 1 - max(top, 0), 0), : max(frame.shape[1] - 1 - max(left, 0), 0)]
        square = np.zeros((side, side, 3), np.uint8)
        square[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]] = inside
        return cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR), side

    def remember(self) -> None:
        """Encodes the templates, and forgets what may have become the next one."""
        given = {"templates": self.templates, "filled": self.filled}
        outputs = self.encode.run(None, {x.name: given[x.name] for x in self.encode.get_inputs()})
        self.cache = dict(zip((x.name for x in self.encode.get_outputs()), outputs, strict=True))
        self.candidate, self.best = self.templates[0, 0], -1.0

    def step(self, frame: np.ndarray) -> tuple[np.ndarray, float]:
        """The target's box and score on the next frame."""
        search, side = self.crop(frame, "search")
        inputs = {"search": search[None], **self.cache}
        (found, *_), (score, *_) = self.locate.run(["boxes_cxcywh", "scores"], inputs)
        found, extent = found * np.float32(side), frame.shape[1::-1]
        corner = self.box[:2] + self.box[2:] / 2 - np.float32(side / 2) + found[:2] - found[2:] / 2
        low = np.minimum(np.maximum(corner, 0), np.subtract(extent, self.margin))
        high = np.minimum(np.maximum(corner + found[2:], self.margin), extent)
        self.box = np.concatenate([low, np.maximum(high - low, self.margin)]).astype(np.float32)
        self.frames, self.best = self.frames + 1, self.best * self.settings["max_score_decay"]
        if score > max(self.best, self.settings["candidate_above"]):
            self.best, self.candidate = score, self.crop(frame, "template")[0]
        refreshes, due = divmod(self.frames, self.settings["update_interval"])
        if due == 0 and (online := self.settings["num_online_templates"]):
            slot = 1 + refreshes % online
            self.templates[:, slot], self.filled[:, slot] = self.candidate, True
            self.remember()
        return self.box, float(score)


if __name__ == "__main__":
    folder, video, text = sys.argv[1:]
    capture, tracker = cv2.VideoCapture(video), None
    while (read := capture.read())[0]:
        rgb = cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
        if tracker is None:
            tracker = ExportedTracker(Path(folder), rgb, np.array(text.split(","), np.float32))
        else:
            print(*(f"{number:.2f}" for number in tracker.step(rgb)[0]), sep=",")
