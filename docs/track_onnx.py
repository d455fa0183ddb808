"""Tracks with what `mixformer export --format onnx` leaves: python docs/track_onnx.py exported my.mp4 120,80,60,90"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def track(folder: Path, frames: Iterator[np.ndarray], box: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """The target's box and score on each RGB frame after the first, on which x, y, w, h in pixels mark it."""
    record = json.loads((folder / "onnx.json").read_text())
    rules, slots, (names, located) = record["tracker"], record["template_slots"], record["functions"].values()
    encode, locate = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in record["functions"])

    def crop(frame: np.ndarray, kind: str) -> tuple[np.ndarray, int]:  # a square around the box, and its side
        (x, y, w, h), size = box.tolist(), record[f"{kind}_size"]
        side = int(np.ceil(np.sqrt(w * h) * rules[f"{kind}_factor"]))
        places = [np.arange(side) + round(middle - side / 2) for middle in (x + w / 2, y + h / 2)]
        columns, rows = ((at >= 0) & (at < end - 1) for at, end in zip(places, extent, strict=True))
        square = frame.take(places[1], 0, mode="clip").take(places[0], 1, mode="clip")  # black beyond the frame
        return cv2.resize(square * (rows[:, None] & columns)[..., None], (size, size)), side

    def clip(corner: np.ndarray, sides: np.ndarray) -> np.ndarray:  # into the frame, by a margin at least
        low, high = np.clip(corner, 0, extent - margin), np.clip(corner + sides, margin, extent)
        return np.concatenate([low, np.maximum(high - low, margin)])

    extent, most = np.array((first := next(frames)).shape[1::-1], np.float32), rules["clip_margin"]
    margin = np.float32(np.clip((rules["clip_share"] or np.inf) * min(box[2:]), min(1, most), most))
    given = {"templates": np.stack([crop(first, "template")[0]] * slots)[None], "filled": np.arange(slots)[None] < 2}
    box, cache, is_lost, streak, usual = np.asarray(box, np.float32), {}, False, 0, np.float32(np.inf)
    for number, frame in enumerate(frames, 1):
        if not cache:  # the templates are new
            outputs = encode.run(list(names["outputs"]), {name: given[name] for name in names["inputs"]})
            cache, candidate, best = dict(zip(names["outputs"], outputs, strict=True)), given["templates"][0, 0], -1.0
        search, side = crop(frame, "search")
        inputs = {"search": search[None], "entropy_limit": usual[None] + np.float32(rules["entropy_margin"]), **cache}
        found, *spread, score = (each[0] for each in locate.run(None, {key: inputs[key] for key in located["inputs"]}))
        corner = (found[:2] - found[2:] / 2) * np.float32(side) + (box[:2] + box[2:] / 2 - np.float32(side / 2))
        near, share = clip(corner, found[2:] * np.float32(side)), 0 if is_lost else rules["size_smoothing"]
        sides = box[2:] ** share * near[2:] ** (1 - share)
        box = clip(near[:2] + (near[2:] - sides) / 2, sides)
        streak = streak + 1 if (score > rules["found_above"] if is_lost else score < rules["lost_below"]) else 0
        if streak == rules["found_after" if is_lost else "lost_after"]:
            is_lost, streak = not is_lost, 0
        if spread and (number == 1 or (not is_lost and score > record["entropy_above"])):
            usual = spread[0] if number == 1 else usual + np.float32(record["entropy_rate"]) * (spread[0] - usual)
        if score > max(best := best * rules["max_score_decay"], rules["candidate_above"]):
            best, candidate = score, crop(frame, "template")[0]
        if slots > 1 and number % rules["update_interval"] == 0:
            slot = 1 + number // rules["update_interval"] % (slots - 1)
            given["templates"][:, slot], given["filled"][:, slot], cache = candidate, True, {}
        yield box, float(score)


if __name__ == "__main__":
    folder, video, text = sys.argv[1:]
    frames = (cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB) for read in iter(cv2.VideoCapture(video).read, (False, None)))
    for box, _score in track(Path(folder), frames, np.array(text.split(","), np.float64)):
        print(*(f"{number:.2f}" for number in box), sep=",")
