"""For `mixformer doctor`: the numbers of two tiny models (by the official code) and of the embedded tracker, which
travel with the package in `assets/doctor.npz` (made by `tests/store_doctor.py`), against what this machine computes."""

import dataclasses
import importlib.metadata
import json
import math
import platform
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Float, Float32, UInt8

import mixformer_jax
from mixformer_jax.convert.convert import DEFAULT_WEIGHTS
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.extras import install_line
from mixformer_jax.media.decoders import decoder_name, try_interlaced
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.video import VideoWriter, open_source
from mixformer_jax.models.attention import choose_kernel
from mixformer_jax.models.backbone import TemplateCache
from mixformer_jax.models.config import ComputeDtype, MixFormerConfig
from mixformer_jax.models.mixformer import Prediction, build_model
from mixformer_jax.tracking.tracker import Tracker, load

ASSET = Path(str(resources.files("mixformer_jax") / "assets" / "doctor.npz"))
HEIGHT, WIDTH, NUM_FRAMES = 120, 160, 6
FIRST_BOX_XYWH = (52, 44, 34, 28)
VIDEO_TOLERANCE = 8.0  # of 255, mean over the pixels: what MPEG-4 leaves out, with room


class Tolerances(NamedTuple):
    """How far results may be off: features and logits in units of the largest magnitude (at least 1), boxes in units of
    the search crop's side, the embedded tracker's boxes in pixels of the frame."""

    features: float
    corner_logits: float
    box: float
    score_logit: float
    tracked: float


class Precision(NamedTuple):
    """A way to compute: its name, the compute type, JAX's precision of products (None: as configured)."""

    name: str
    dtype: ComputeDtype
    products: str | None
    tolerances: Tolerances


# The tolerances of the parity tests.
EXACT = Precision("float32", "float32", "highest", Tolerances(1e-4, 1e-4, 1e-5, 1e-4, 0.02))
# Three to ten times what comes out on a CPU: in bfloat16 0.03, 0.015, 0.01, 0.0005 and 0.07; with the factors of
# float32 products rounded to TF32 0.002, 0.0015, 0.0012, 0.004 and 0.005.
BFLOAT16 = Precision("bfloat16", "bfloat16", None, Tolerances(0.1, 0.1, 0.03, 0.1, 0.3))
TF32 = Precision("float32 as configured", "float32", None, Tolerances(0.01, 0.01, 0.005, 0.02, 0.05))

KERNELS = {"xla": "plain operations", "cudnn": "cuDNN's fused kernel", "pallas": "a Pallas kernel (in training)"}
# Which results a case stores, and the tolerance that each has.
RESULTS = {
    "search_features": "features",
    "template_features": "features",
    "corner_logits": "corner_logits",
    "box_cxcywh": "box",
    "score_logit": "score_logit",
}


class Case(NamedTuple):
    """A tiny model, what it is given, and the official code's outputs (some of `RESULTS`)."""

    name: str
    config: MixFormerConfig
    variables: dict[str, Any]
    templates: Float32[np.ndarray, "1 slots T T 3"]
    search: Float32[np.ndarray, "1 S S 3"]
    expected: dict[str, np.ndarray]


class Stored(NamedTuple):
    """The content of the asset: cases, and the boxes that the embedded tracker found on the frames of `clip`."""

    cases: tuple[Case, ...]
    boxes_xywh: Float[np.ndarray, "frames 4"]


class Finding(NamedTuple):
    """One check: what was looked at, whether it is right, what came out, and what was expected."""

    what: str
    is_right: bool
    measured: str
    expected: str = ""

    def __str__(self) -> str:
        verdict = "OK" if self.is_right else "WRONG"
        return f"{verdict:<7}{self.what:<46}{self.measured:<12}{self.expected}".rstrip()


def load_stored(asset: Path = ASSET) -> Stored:
    """Reads the asset, where bytes of bfloat16 hold weights and inputs; WeightsError if it is missing or damaged."""
    try:
        with np.load(asset, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        cases = tuple(_case(name, about, arrays) for name, about in json.loads(str(arrays["about"])).items())
        return Stored(cases, arrays["boxes_xywh"])
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{asset}: cannot be read ({error}); install mixformer-jax anew") from error


def _case(name: str, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Case:
    high, low = arrays[f"{name}/planes"].astype(np.uint16)
    values = (high << 8 | low).view(jnp.bfloat16).astype(np.float32)
    ends = np.cumsum([math.prod(shape) for shape in about["shapes"].values()])
    parts = {
        key: part.reshape(shape)
        for (key, shape), part in zip(about["shapes"].items(), np.split(values, ends)[:-1], strict=True)
    }
    templates, search = parts.pop("templates"), parts.pop("search")
    expected = {key: arrays[f"{name}/{key}"] for key in RESULTS if f"{name}/{key}" in arrays}
    config = MixFormerConfig.from_dict(about["config"])
    return Case(name, config, unflatten_dict(parts, sep="/"), templates, search, expected)


def clip() -> UInt8[np.ndarray, "frames height width 3"]:
    """A patch wanders over a background, in whole numbers alone: the same bytes on every machine."""
    background, patch = _texture(HEIGHT, WIDTH, 16, 1) // 2 + 40, _texture(28, 34, 7, 2)
    frames = np.repeat(background[None], NUM_FRAMES, axis=0)
    for index, frame in enumerate(frames):
        x, y = FIRST_BOX_XYWH[0] + 4 * index, FIRST_BOX_XYWH[1] + index * (index - 3)
        frame[y : y + 28, x : x + 34] = patch
    return frames


def _texture(height: int, width: int, cell: int, seed: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Bilinear between arbitrary colours on a coarse grid."""
    rows, columns = height // cell + 2, width // cell + 2
    bits = (np.arange(rows * columns * 3, dtype=np.uint64) + np.uint64(seed << 16)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    coarse = (bits >> np.uint64(56)).astype(np.int64).reshape(rows, columns, 3)
    (row, below), (column, right) = np.divmod(np.arange(height), cell), np.divmod(np.arange(width), cell)
    below, right = below[:, None, None], right[None, :, None]
    upper, lower = (coarse[r][:, column] * (cell - right) + coarse[r][:, column + 1] * right for r in (row, row + 1))
    return ((upper * (cell - below) + lower * below) // cell**2).astype(np.uint8)


def precisions(platform_name: str) -> tuple[Precision, ...]:
    """The ways to compute that matter on a kind of device: a CPU has exact products and computes in float32; elsewhere
    JAX rounds the factors of float32 products unless told otherwise, on GPUs to TF32, on TPUs to bfloat16."""
    if platform_name == "cpu":
        return (EXACT,)
    configured = TF32 if platform_name == "gpu" else TF32._replace(tolerances=BFLOAT16.tolerances)
    return EXACT, configured, BFLOAT16


def environment(device: jax.Device, extras: Mapping[str, str]) -> list[tuple[str, str]]:
    """Versions, extras and devices as labels and texts; `extras` tells which extra brings a package."""
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "flax": flax.__version__}
    versions |= {"numpy": np.__version__, "opencv": cv2.__version__}
    lines = [
        ("package", f"mixformer-jax {mixformer_jax.__version__}, in {Path(mixformer_jax.__file__).parent}"),
        ("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("videos", f"are decoded by {decoder_name()}"),
    ]
    distributions = importlib.metadata.packages_distributions()
    for extra in dict.fromkeys(extras.values()):
        packages = [package for package, of in extras.items() if of == extra]
        names = {package: distributions[package][0] for package in packages if package in distributions}
        told = [f"{name} {importlib.metadata.version(name)}" for name in names.values()]
        if missing := [package for package in packages if package not in names]:
            told.append(f"without {', '.join(missing)} ({install_line(extra)})")
        lines.append((f"[{extra}]", ", ".join(told)))
    dtype: ComputeDtype = "float32" if device.platform == "cpu" else "bfloat16"
    lines += [
        ("devices", ", ".join(f"{each.platform}:{each.id} {each.device_kind}" for each in jax.devices())),
        ("checked", f"{device.platform}:{device.id} {device.device_kind}"),
        ("attention", f"is computed by {KERNELS[choose_kernel('auto', dtype, device.platform, 768, 12)]} in {dtype}"),
    ]
    return lines + unseen_accelerators() + expected_precision(device.platform)


def unseen_accelerators(root: Path = Path("/")) -> list[tuple[str, str]]:
    """Accelerators whose drivers are loaded here and that JAX does not see, with what may help."""
    seen = {device.platform for device in jax.devices()}
    chosen = jax.config.jax_platforms  # type: ignore[attr-defined]
    lines = []
    for platform_name, name, driver, extra in (
        ("gpu", "an NVIDIA GPU", "proc/driver/nvidia/version", "cuda"),
        ("tpu", "a TPU", "dev/accel0", "tpu"),
    ):
        if platform_name not in seen and (root / driver).exists():
            mend = f"JAX_PLATFORMS is {chosen}" if chosen else f"{install_line(extra)}; drivers: docs/install.md"
            lines.append(("not used", f"{name} is here and JAX does not see it: {mend}"))
    return lines


def expected_precision(platform_name: str) -> list[tuple[str, str]]:
    """What float32 means on a kind of device, as labels and texts; nothing for a CPU, where it is exact."""
    if platform_name == "cpu":
        return []
    setting = jax.config.jax_default_matmul_precision or "not set"  # type: ignore[attr-defined]
    return [
        ("float32", "is computed with jax_default_matmul_precision 'highest', and again as configured here"),
        ("", f"({setting}), which may be as coarse as TF32 (GPU: features to about 1e-3) or bfloat16 (TPU: to"),
        ("", "about 1e-2). Trackers compute in bfloat16 on this device unless told otherwise."),
    ]


def examine(device: jax.Device, asset: Path = ASSET, weights: str = DEFAULT_WEIGHTS) -> Iterator[Finding]:
    """All checks, each as soon as it is done; `asset` holds the stored numbers, and boxes that `weights` found."""
    ways = precisions(device.platform)
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = []
    try:
        stored = load_stored(asset)
    except WeightsError as error:
        yield Finding("stored numbers", False, f"failed: {error}")
    else:
        for case in stored.cases:
            checks += [(f"{case.name}, {way.name}", partial(_check_case, case, way, device)) for way in ways]
        for way in ways:
            checks.append((f"{weights}, {way.name}", partial(_check_tracker, stored.boxes_xywh, weights, way, device)))
    for what, check in [*checks, ("video", _check_video), ("video: interlaced frames", _check_interlaced)]:
        try:
            yield from check()
        except (WeightsError, SourceError, OSError, jax.errors.JaxRuntimeError) as error:
            yield Finding(what, False, f"failed: {error}")


def _check_case(case: Case, way: Precision, device: jax.Device) -> Iterator[Finding]:
    """A case with one more slot, which is empty: whatever it holds must make no difference."""
    model = build_model(dataclasses.replace(case.config, dtype=way.dtype), platform=device.platform)
    templates = np.concatenate([case.templates, case.templates[:, :1, ::-1]], axis=1)
    filled = np.arange(templates.shape[1])[None] < case.templates.shape[1]

    @jax.jit
    def run(variables: dict, templates: jax.Array, filled: jax.Array, search: jax.Array) -> dict[str, Any]:
        cache = cast(TemplateCache, model.apply(variables, templates, filled, method="encode_templates"))
        prediction = cast(Prediction, model.apply(variables, cache, search, method="locate"))
        assert prediction.top_left_logits is not None and prediction.bottom_right_logits is not None
        return {
            "search_features": prediction.features,
            "template_features": cache.features[:, 0],
            "corner_logits": jnp.stack([prediction.top_left_logits, prediction.bottom_right_logits]),
            "box_cxcywh": prediction.boxes_cxcywh,
            "score_logit": prediction.score_logits,
        }

    with _products(way):
        found = jax.device_get(run(*jax.device_put((case.variables, templates, filled, case.search), device)))
    for name, expected in case.expected.items():
        scale = max(1.0, float(np.abs(expected).max()))
        off = float(np.abs(np.asarray(found[name], np.float32) - expected).max()) / scale
        what = f"{case.name}, {way.name}: {name.replace('_', ' ')}"
        yield _compared(what, off, getattr(way.tolerances, RESULTS[name]))


def _check_tracker(
    boxes_xywh: Float[np.ndarray, "frames 4"], weights: str, way: Precision, device: jax.Device
) -> Iterator[Finding]:
    """Every step starts at the stored box before, so that a difference is that of one step."""
    with _products(way):
        tracker = load(weights, device=device.platform, dtype=way.dtype)
        found = track_clip(tracker, boxes_xywh)
    off = float(np.abs(found - boxes_xywh).max())
    yield _compared(f"{weights}, {way.name}: boxes (pixels)", off, way.tolerances.tracked)


def track_clip(
    tracker: Tracker, boxes_xywh: Float[np.ndarray, "frames 4"] | None = None
) -> Float[np.ndarray, "frames 4"]:
    """Boxes on the frames of `clip`; every step starts at the box found before, or, where there are, at those given."""
    first, *others = clip()
    state = tracker.start(first, FIRST_BOX_XYWH)
    found = [np.asarray(FIRST_BOX_XYWH, np.float64)]
    for index, frame in enumerate(others, 1):
        if boxes_xywh is not None:
            before = jax.device_put(boxes_xywh[index - 1 : index].astype(np.float32), tracker.device)
            state = state._replace(boxes_xywh=before)
        state, tracked = tracker.step(state, frame)
        found.append(tracked.box_xywh)
    return np.stack(found)


def _check_video() -> Iterator[Finding]:
    frames = clip()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with VideoWriter(path, 30.0, (HEIGHT, WIDTH)) as writer:
            for frame in frames:
                writer.write(frame)
        with open_source(path) as source:
            decoded = list(source)
    is_whole = len(decoded) == len(frames)
    yield Finding("video: frames written and read", is_whole, str(len(decoded)), str(len(frames)))
    if is_whole:
        off = float(np.abs(np.stack(decoded).astype(np.float64) - frames).mean())
        yield _compared("video: grey levels off, mean", off, VIDEO_TOLERANCE)


def _check_interlaced() -> list[Finding]:
    is_safe, told = try_interlaced()
    return [Finding("video: interlaced frames", is_safe, told, "right, or refused")]


def _products(way: Precision) -> AbstractContextManager[Any]:
    return nullcontext() if way.products is None else jax.default_matmul_precision(way.products)


def _compared(what: str, off: float, tolerance: float) -> Finding:
    return Finding(what, off <= tolerance, f"{off:.2g}", f"at most {tolerance:g}")
