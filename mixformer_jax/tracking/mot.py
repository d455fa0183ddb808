"""Many objects: tracks begin at detections, MixFormer looks for those that detections leave in doubt. Not in the paper;
docs/mot.md ("How it tracks") has the steps of a frame.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int64, UInt8

from mixformer_jax.boxes import cxcywh_to_xywh, iou_matrix, xywh_to_cxcywh
from mixformer_jax.datasets.detections import Detections
from mixformer_jax.media.sources import Frame
from mixformer_jax.models.backbone import TemplateCache
from mixformer_jax.models.layers import sincos_positions
from mixformer_jax.tracking.step import TrackState, clip_margins, encode_templates, start_from_crops, step_from_crops
from mixformer_jax.tracking.tracker import Tracked, Tracker
from mixformer_jax.typed_settings import ConfigError, Count, NaturalNumber, Share, ShareAboveZero, TypedSettings

MOST_ROWS = 32  # of one call of the network
CLEAR_BELOW = 0.2  # overlap of an object with any other on a frame that may give its template
_NOBODY = -1


@dataclasses.dataclass(frozen=True)
class MotSettings(TypedSettings):
    """How tracks begin, go on and end.

    Attributes:
        min_score: detections below this score are ignored.
        birth_score: an object begins at a detection with at least this score.
        search_all: the network looks for every object on every frame, whatever the detections say.
        searches: at most so many objects are looked for on a frame; None: all that are in doubt.
        search_share: side of what is looked at over that of the tracker's search region; see `narrowed`.
        sure_above: overlap of a detection with where its object is expected that leaves no doubt,
        beside_below: if neither overlaps with another one by this much.
        match_above: least overlap of a detection with an object that it is given to.
        keep_above: least score of the network for a box that counts without a detection.
        found_near: least overlap of such a box with where its object is expected.
        end_after: frames without a detection after which an object ends; sooner if it had fewer detections.
        confirm_after: detections before an object is shown; those of the first frame are shown at once.
        hide_above: an object without a detection that overlaps so much with one that has one is hidden behind it.
    """

    min_score: float = 0.1
    birth_score: float = 0.5
    search_all: bool = False
    searches: NaturalNumber | None = None
    search_share: ShareAboveZero = 0.5
    sure_above: Share = 0.5
    beside_below: Share = 0.5
    match_above: Share = 0.3
    keep_above: Share = 0.35
    found_near: Share = 0.3
    end_after: Count = 30
    confirm_after: Count = 2
    hide_above: Share = 0.5

    section = "mot"


class Objects(NamedTuple):
    """Objects that are followed, a row each, on the host."""

    numbers: Int64[np.ndarray, " n"]  # no number is given twice
    boxes_xywh: Float64[np.ndarray, "n 4"]  # pixels
    speeds: Float64[np.ndarray, "n 2"]  # of the centres, pixels a frame
    scores: Float64[np.ndarray, " n"]  # of the detection, or of what the network found
    hits: Int64[np.ndarray, " n"]  # frames with a detection
    measured: Int64[np.ndarray, " n"]  # frames with a detection or something that the network found
    unseen: Int64[np.ndarray, " n"]  # frames since the last detection
    is_confirmed: Bool[np.ndarray, " n"]
    is_shown: Bool[np.ndarray, " n"]  # whether the box is an answer
    crops: UInt8[np.ndarray, "n 2 T T 3"]  # templates: the first one, and the last clear one
    cut_at: Int64[np.ndarray, " n"]  # frame of the last one

    def take(self, rows: Bool[np.ndarray, " n"]) -> "Objects":
        """Some of them."""
        return Objects(*(column[rows] for column in self))


class MotState(NamedTuple):
    """State between two frames; `encoded` has templates' caches by number, and is made again where it is missing."""

    objects: Objects
    frame_index: int
    next_number: int
    encoded: dict[int, tuple[int, TemplateCache | None]]  # and the frame at which the crop was cut


class MotTracker:
    """Follows many objects through a video; holds nothing that changes.

        state = tracker.start()
        state, tracked = tracker.step(state, frame, detections)

    `tracked.numbers` says whose the boxes are.
    """

    def __init__(self, tracker: Tracker, settings: MotSettings | None = None) -> None:
        if tracker.config.streams == "both":
            raise ConfigError(f"{tracker.config.name} reads two streams, and many objects are followed in one")
        # Detections find what is lost, and boxes are smoothed after they are matched.
        online = min(1, tracker.settings.num_online_templates)
        self.settings = MotSettings() if settings is None else settings
        narrow = narrowed(tracker, self.settings.search_share)
        alone = {"redetect_every": 0, "long_term": False, "size_smoothing": 0.0}
        self.tracker = narrow.with_settings(num_online_templates=online, **alone)
        if not tracker.config.is_cacheable:
            raise ConfigError(f"{tracker.config.name} cannot keep encoded templates, which many objects need")
        size = tracker.config.template_size
        blank = np.zeros((1, size, size, 3), np.uint8), np.ones((1, 4), np.float32)
        self._blank = start_from_crops(*self.tracker.parts, *jax.device_put(blank, self.tracker.device))

    def start(self) -> MotState:
        """Before the first frame."""
        nobody = self._new(0, 0, np.zeros((0, 0, 3), np.uint8), np.zeros((0, 4)), np.zeros(0))
        return MotState(nobody, 0, 0, {})

    def step(self, state: MotState, frame: Frame, detections: Detections) -> tuple[MotState, Tracked]:
        """Who is where on the next frame."""
        settings, objects = self.settings, state.objects
        usable = detections.scores >= settings.min_score
        boxes_xywh, scores = detections.boxes_xywh[usable], detections.scores[usable]
        # Where their motion leads them; a detection that overlaps with one object alone, and it with no other, is its.
        expected_xywh = expected_boxes(objects.boxes_xywh, objects.speeds)
        overlaps = iou_matrix(expected_xywh, boxes_xywh)
        rows, columns = sure_pairs(overlaps, settings.sure_above, settings.beside_below)
        is_sure = np.zeros(len(objects.numbers), bool)
        is_sure[rows] = True

        # The others are looked for: a box that scores well is a better guess of where they are than their motion.
        wanted = self._in_doubt(objects, is_sure, overlaps)
        state, searched_xywh, searched_scores = self._search(state, frame, expected_xywh, wanted)
        around = iou_matrix(searched_xywh, expected_xywh[wanted]).diagonal()
        found = (searched_scores >= settings.keep_above) & (around >= settings.found_near)
        guess_xywh, found_scores = expected_xywh.copy(), np.full(len(expected_xywh), np.nan)
        guess_xywh[wanted[found]], found_scores[wanted[found]] = searched_xywh[found], searched_scores[found]

        # The remaining detections go to the remaining objects by the largest sum of overlaps, and else begin objects.
        owner = np.full(len(scores), _NOBODY)
        owner[columns] = rows
        rest, free = np.flatnonzero(~is_sure), np.flatnonzero(owner == _NOBODY)
        weights = (0.5 + 0.5 * np.clip(scores[free], 0, 1))[None]
        more, less = best_pairs(iou_matrix(guess_xywh[rest], boxes_xywh[free]), weights, settings.match_above)
        owner[free[less]] = rest[more]

        objects = self._moved(objects, expected_xywh, guess_xywh, found_scores, wanted, boxes_xywh, scores, owner)
        objects = _ended(objects, settings, frame.shape[:2])
        objects = self._with_clear_crops(objects, frame, state.frame_index)
        born = _births(objects, boxes_xywh, scores, owner, settings)
        if born.any():
            new = self._new(state.next_number, state.frame_index, frame, boxes_xywh[born], scores[born])
            objects = Objects(*(np.concatenate(each) for each in zip(objects, new, strict=True)))
        encoded = {number: state.encoded[number] for number in objects.numbers.tolist() if number in state.encoded}
        state = MotState(objects, state.frame_index + 1, state.next_number + int(born.sum()), encoded)
        shown = objects.take(objects.is_shown)
        return state, Tracked(shown.boxes_xywh, shown.scores, shown.unseen > 0, shown.numbers)

    def _in_doubt(
        self, objects: Objects, is_sure: Bool[np.ndarray, " n"], overlaps: Float64[np.ndarray, "n m"]
    ) -> Int64[np.ndarray, " k"]:
        """Whom to look for. Whoever is not confirmed needs a detection for that, and most of them are none."""
        settings = self.settings
        wanted = np.flatnonzero(objects.is_confirmed & (settings.search_all | ~is_sure))
        # First those without a detection, which are lost otherwise, and of these those that were seen last.
        has_some = overlaps[wanted].max(axis=1, initial=0.0) >= settings.match_above
        order = np.lexsort((objects.numbers[wanted], objects.unseen[wanted], has_some))
        return np.asarray(wanted[order][: settings.searches], np.int64)

    def _search(
        self, state: MotState, frame: Frame, expected_xywh: Float64[np.ndarray, "n 4"], wanted: Int64[np.ndarray, " k"]
    ) -> tuple[MotState, Float64[np.ndarray, "k 4"], Float64[np.ndarray, " k"]]:
        """Looks for objects around where they are expected: also returns their boxes and scores."""
        tracker, objects, encoded = self.tracker, state.objects, dict(state.encoded)
        for row in wanted.tolist():
            number, cut_at = int(objects.numbers[row]), int(objects.cut_at[row])
            if number not in encoded or encoded[number][0] != cut_at:
                crops = jax.device_put(objects.crops[row : row + 1, : tracker.settings.num_slots], tracker.device)
                encoded[number] = cut_at, encode_templates(*tracker.parts, crops, self._blank.filled)
        found = [(np.zeros((0, 4)), np.zeros(0))]
        for first in range(0, len(wanted), MOST_ROWS):
            some = wanted[first : first + MOST_ROWS]
            caches = [encoded[number][1] for number in objects.numbers[some].tolist()]
            found.append(self._locate(caches, frame, expected_xywh[some]))
        boxes_xywh, scores = (np.concatenate(each) for each in zip(*found, strict=True))
        return state._replace(encoded=encoded), boxes_xywh, scores

    def _locate(
        self, caches: list[TemplateCache | None], frame: Frame, around_xywh: Float64[np.ndarray, "k 4"]
    ) -> tuple[Float64[np.ndarray, "k 4"], Float64[np.ndarray, " k"]]:
        """Boxes and scores; without a score module all score 0, and only detections tell who is there."""
        tracker, count = self.tracker, len(caches)
        padding = num_rows(count) - count
        around_xywh = np.pad(around_xywh, ((0, padding), (0, 0)), mode="edge")
        margins = clip_margins(tracker.settings, around_xywh.astype(np.float32))
        arrays = around_xywh.astype(np.float32), margins
        state = _rows_of(self._blank, (*caches, *caches[:1] * padding), *jax.device_put(arrays, tracker.device))
        crops = tracker.crops_around(dict.fromkeys(range(count), frame), around_xywh)
        frame_size = np.array(frame.shape[:2], np.int32)
        _, prediction = step_from_crops(*tracker.parts, state, *crops, frame_size, look=_nowhere)
        boxes_xywh, scores = jax.device_get((prediction.boxes_xywh, prediction.scores))
        scores = np.zeros(count) if scores is None else scores[:count].astype(np.float64)
        return boxes_xywh[:count].astype(np.float64), scores

    def _moved(
        self,
        objects: Objects,
        expected_xywh: Float64[np.ndarray, "n 4"],
        guess_xywh: Float64[np.ndarray, "n 4"],
        found_scores: Float64[np.ndarray, " n"],
        wanted: Int64[np.ndarray, " k"],
        boxes_xywh: Float64[np.ndarray, "m 4"],
        scores: Float64[np.ndarray, " m"],
        owner: Int64[np.ndarray, " m"],
    ) -> Objects:
        """The objects where they were detected, found, or expected. Who was not found has NaN in `found_scores`."""
        n = len(objects.numbers)
        columns = np.flatnonzero(owner != _NOBODY)
        rows = owner[columns]
        is_detected, is_searched, is_found = np.zeros(n, bool), np.zeros(n, bool), ~np.isnan(found_scores)
        is_detected[rows], is_searched[wanted] = True, True
        measured_xywh = guess_xywh.copy()
        measured_xywh[rows] = boxes_xywh[columns]
        both = is_detected & is_found
        # The errors of detector and network have little in common.
        measured_xywh[both] = (measured_xywh[both] + guess_xywh[both]) / 2
        # Who is found where somebody else was detected is behind that one, or was taken for it.
        overlaps = iou_matrix(measured_xywh, measured_xywh)
        is_other = is_detected[None] & ~np.eye(n, dtype=bool)
        is_found &= is_detected | (others_overlap(overlaps, is_other) < self.settings.hide_above)
        is_measured = is_detected | is_found
        times = objects.measured + is_measured
        corrected, speeds = corrected_boxes(expected_xywh, objects.speeds, measured_xywh, np.maximum(times, 1))
        hits = objects.hits + is_detected
        is_confirmed = objects.is_confirmed | (hits >= self.settings.confirm_after)
        new_scores = np.where(is_found, found_scores, objects.scores)
        new_scores[rows] = scores[columns]
        return objects._replace(
            boxes_xywh=np.where(is_measured[:, None], corrected, expected_xywh),
            speeds=np.where(is_measured[:, None], speeds, SPEED_DECAY * objects.speeds),
            scores=new_scores,
            hits=hits,
            measured=times,
            unseen=np.where(is_detected, 0, objects.unseen + 1),
            is_confirmed=is_confirmed,
            # Who could not be looked for is where it is expected, for the one frame that detectors miss at random.
            is_shown=is_confirmed & (is_measured | (~is_searched & (objects.unseen == 0))),
        )

    def _with_clear_crops(self, objects: Objects, frame: Frame, frame_index: int) -> Objects:
        """New last templates of objects whose detection stands clear, where the last one is old."""
        old = frame_index - objects.cut_at >= self.tracker.settings.update_interval
        due = np.flatnonzero(old & (objects.unseen == 0))
        if len(due) == 0:
            return objects
        overlaps = iou_matrix(objects.boxes_xywh[due], objects.boxes_xywh)
        is_other = objects.numbers[due][:, None] != objects.numbers[None]
        due = due[others_overlap(overlaps, is_other) < CLEAR_BELOW]
        crops, cut_at = objects.crops.copy(), objects.cut_at.copy()
        crops[due, 1] = self._template_crops(frame, objects.boxes_xywh[due])
        cut_at[due] = frame_index
        return objects._replace(crops=crops, cut_at=cut_at)

    def _template_crops(self, frame: Frame, boxes_xywh: Float64[np.ndarray, "k 4"]) -> UInt8[np.ndarray, "k T T 3"]:
        return self.tracker.template_crops(dict.fromkeys(range(len(boxes_xywh)), frame), boxes_xywh)

    def _new(
        self,
        first_number: int,
        frame_index: int,
        frame: Frame,
        boxes_xywh: Float64[np.ndarray, "k 4"],
        scores: Float64[np.ndarray, " k"],
    ) -> Objects:
        """Objects that begin at detections."""
        k = len(boxes_xywh)
        ones, crops = np.ones(k, np.int64), self._template_crops(frame, boxes_xywh)
        is_shown = np.full(k, frame_index == 0 or self.settings.confirm_after == 1)
        return Objects(
            *(first_number + np.arange(k), boxes_xywh, np.zeros((k, 2)), scores, ones, ones, 0 * ones),
            *(is_shown, is_shown, np.stack([crops, crops], axis=1), ones * frame_index),
        )


def narrowed(tracker: Tracker, share: float) -> Tracker:
    """The same weights on a search region of about this share of the side; its tokens are where they were.

    For targets whose place is nearly known: a box that reaches out of the region is not found whole. Of the position
    table the middle is kept; convolutional backbones have none.

    Raises ConfigError: of a model with MAE's decoder, whose positions count from the region's corner; a region that
    would be smaller than the target.
    """
    config, settings = tracker.config, tracker.settings
    cut = round(config.search_grid * (1 - share) / 2)  # tokens on each side
    grid = config.search_grid - 2 * cut
    if cut == 0 or grid < 1:
        return tracker
    if config.decoder_blocks:
        raise ConfigError(f"{config.name} has decoder_blocks, and its search region cannot be narrowed")
    factor = settings.search_factor * grid / config.search_grid
    if factor < 1:
        least = config.search_grid / grid
        raise ConfigError(
            f"tracker.search_factor is {settings.search_factor:g}, of which the middle {grid / config.search_grid:.2g} "
            f"is searched, less than the target; expected at least {least:.3g}"
        )
    changes: dict[str, object] = {"search_size": grid * config.patch_size}
    variables = tracker.variables
    if config.backbone == "vit":
        changes["positions"] = "learnable"  # tables as they are handed in
        backbone = dict(variables["params"]["backbone"])
        for stream, side in (("template", config.template_grid), ("search", config.search_grid)):
            name = f"{stream}_positions"
            table = backbone[name]["table"] if name in backbone else sincos_positions(side, config.width)
            backbone[name] = {"table": np.asarray(jax.device_get(table), np.float32)}
        table = backbone["search_positions"]["table"].reshape(config.search_grid, config.search_grid, -1)
        middle = table[cut : cut + grid, cut : cut + grid].reshape(grid**2, -1)
        backbone["search_positions"] = {"table": middle}
        variables = variables | {"params": variables["params"] | {"backbone": backbone}}
    return Tracker(
        dataclasses.replace(config, **changes),  # type: ignore[arg-type]
        dataclasses.replace(settings, search_factor=factor),
        variables,
        tracker.device,
        tracker.segmenter,
    )


def num_rows(count: int) -> int:
    """Rows of the program that looks for so many objects: 1, 2, 4, 6, 8, or a multiple of 4."""
    step = 2 if count <= 8 else 4
    return 1 if count == 1 else -(-count // step) * step


def _nowhere(_boxes_xywh: Any) -> Any:
    raise AssertionError("a tracker without redetect_every looks nowhere else")


@jax.jit
def _rows_of(
    blank: TrackState,
    caches: tuple[TemplateCache | None, ...],
    around_xywh: Float[Array, "k 4"],
    margins: Float[Array, " k"],
) -> TrackState:
    """A state of several objects that is about to look around some boxes."""
    cache = jax.tree.map(lambda *each: jnp.concatenate(each), *caches)
    counters = TrackState._fields.index("frame_index")
    many = (jax.tree.map(lambda one: jnp.repeat(one, len(caches), axis=0), part) for part in blank[:counters])
    state = TrackState(*many, *blank[counters:])
    return state._replace(boxes_xywh=around_xywh, clip_margins=margins, cache=cache)


def _ended(objects: Objects, settings: MotSettings, frame_size: tuple[int, int]) -> Objects:
    """Without those that were not detected for too long, or left the frame."""
    centres = objects.boxes_xywh[:, :2] + objects.boxes_xywh[:, 2:] / 2
    inside = ((centres >= 0) & (centres < frame_size[::-1])).all(axis=1)
    patience = np.minimum(objects.hits, settings.end_after)
    return objects.take((objects.unseen == 0) | (inside & (objects.unseen <= patience)))


def _births(
    objects: Objects,
    boxes_xywh: Float64[np.ndarray, "m 4"],
    scores: Float64[np.ndarray, " m"],
    owner: Int64[np.ndarray, " m"],
    settings: MotSettings,
) -> Bool[np.ndarray, " m"]:
    """Detections at which an object begins: nobody's, sure enough, and not on an object that is there."""
    born = (owner == _NOBODY) & (scores >= settings.birth_score)
    overlaps = iou_matrix(boxes_xywh, objects.boxes_xywh)
    born &= others_overlap(overlaps, np.ones_like(overlaps, bool)) < settings.match_above
    # Of two that overlap, which detectors leave now and then, the surer one.
    among = iou_matrix(boxes_xywh, boxes_xywh)
    for row in np.argsort(-scores, kind="stable").tolist():
        if born[row]:
            born &= (among[row] < settings.hide_above) | (np.arange(len(born)) == row)
    return born


# A box is followed by a line through its past centres, and its size by a mean of the past ones: with the gains of a
# least-squares fit while the past is short (Brookner, Tracking and Kalman Filtering Made Easy, 1998, section 1.2.10),
# and with these from then on.
CENTRE_GAIN, SPEED_GAIN, SIZE_GAIN = 0.5, 0.15, 0.2
# What is left of the speed after a frame on which an object was not seen.
SPEED_DECAY = 0.9


def expected_boxes(
    boxes_xywh: Float64[np.ndarray, "n 4"], speeds: Float64[np.ndarray, "n 2"]
) -> Float64[np.ndarray, "n 4"]:
    """Boxes a frame later; speeds are those of the centres, pixels a frame."""
    moved = boxes_xywh.copy()
    moved[:, :2] += speeds
    return moved


def corrected_boxes(
    expected_xywh: Float64[np.ndarray, "n 4"],
    speeds: Float64[np.ndarray, "n 2"],
    measured_xywh: Float64[np.ndarray, "n 4"],
    times: Int64[np.ndarray, " n"],
) -> tuple[Float64[np.ndarray, "n 4"], Float64[np.ndarray, "n 2"]]:
    """Boxes and speeds between what was expected and what is measured; `times` counts measurements, this one too."""
    k = times[:, None].astype(np.float64)
    centre_gain = np.maximum(2 * (2 * k - 1) / (k * (k + 1)), CENTRE_GAIN)
    speed_gain = np.where(k > 1, np.maximum(6 / (k * (k + 1)), SPEED_GAIN), 0)
    size_gain = np.maximum(1 / k, SIZE_GAIN)
    expected, measured = xywh_to_cxcywh(expected_xywh), xywh_to_cxcywh(measured_xywh)
    off = measured[:, :2] - expected[:, :2]
    sides = expected[:, 2:] ** (1 - size_gain) * measured[:, 2:] ** size_gain
    boxes = np.concatenate([expected[:, :2] + np.minimum(centre_gain, 1) * off, sides], axis=1)
    return cxcywh_to_xywh(boxes), speeds + speed_gain * off


def sure_pairs(
    overlaps: Float64[np.ndarray, "n m"], least: float, most_beside: float
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """Objects and detections that overlap by `least` or more, and nothing else of either kind by `most_beside`."""
    rows, columns = np.nonzero(overlaps >= least)
    beside = overlaps >= most_beside
    alone = (beside.sum(axis=1)[rows] <= 1) & (beside.sum(axis=0)[columns] <= 1)
    return rows[alone], columns[alone]


def best_pairs(
    overlaps: Float64[np.ndarray, "n m"], weights: Float64[np.ndarray, "#n m"], least: float
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """The pairs, no object or detection in two, of the largest sum of weighted overlaps; none below `least`."""
    from scipy.optimize import linear_sum_assignment  # it takes a quarter of a second to import

    values = np.where(overlaps >= least, overlaps * weights, 0)
    rows, columns = linear_sum_assignment(values, maximize=True)
    chosen = values[rows, columns] > 0
    return rows[chosen].astype(np.int64), columns[chosen].astype(np.int64)


def others_overlap(overlaps: Float64[np.ndarray, "n m"], other: Bool[np.ndarray, "n m"]) -> Float64[np.ndarray, " n"]:
    """The largest overlap of each row with a column that is another; 0 where there is none."""
    return np.max(np.where(other, overlaps, 0.0), axis=1, initial=0.0)
