"""Clips as cameras, phones and camcorders write them, encoded by PyAV, which `make test` lays into `.venv/pyav`.

    PYTHONPATH=.venv/pyav python -m tests.clips

writes `mixformer_jax/assets/interlaced.mp4` anew, which `mixformer doctor` decodes.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

# AV_CODEC_FLAG_INTERLACED_DCT and AV_CODEC_FLAG_INTERLACED_ME.
INTERLACED = 1 << 18 | 1 << 29


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    interlaced: bool = False,
    rotation: int = 0,
    times_ms: Sequence[int] | None = None,
    **options: str,
) -> Path:
    """Encodes uint8 RGB frames at 25 Hz, or at the given times."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.codec_context.flags |= INTERLACED if interlaced else 0
        if rotation:
            stream.set_display_rotation(rotation)
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame)).reformat(format=pix_fmt)
            picture.pts = index if times_ms is None else times_ms[index]
            picture.time_base = Fraction(1, 25 if times_ms is None else 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    from mixformer_jax.media.decoders import INTERLACED_CLIP, clip_frames

    write_clip(INTERLACED_CLIP, list(clip_frames()), interlaced=True, crf="16", preset="veryslow")
