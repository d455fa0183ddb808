"""`mixformer track --select`: boxes drawn with the mouse, in a window of OpenCV's."""

import os
import re
import sys

import cv2

from mixformer_jax.cli.console import UsageError
from mixformer_jax.media.sources import FrameSource

_TITLE = "Draw a box, then Space or Enter; again for each further target; Esc ends"
_WINDOWS_NEEDED = "--select needs {}; or give --box X,Y,W,H"


def select_boxes(source: FrameSource) -> list[str]:
    """The boxes that a user draws on the first frame, as --box takes them.

    Raises UsageError where this OpenCV or this computer has no windows, or nothing was drawn.
    """
    if re.search(r"GUI:\s+NONE", cv2.getBuildInformation()):
        lacks = "an OpenCV with windows: pip uninstall opencv-python-headless, then pip install opencv-python"
        raise UsageError(_WINDOWS_NEEDED.format(lacks))
    # Qt would end the process.
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UsageError(_WINDOWS_NEEDED.format("a screen, and neither DISPLAY nor WAYLAND_DISPLAY is set"))
    frame = cv2.cvtColor(source.peek().pixels, cv2.COLOR_RGB2BGR)
    try:
        boxes_xywh = cv2.selectROIs(_TITLE, frame, showCrosshair=False)
        cv2.destroyAllWindows()
    except cv2.error as error:
        raise UsageError(_WINDOWS_NEEDED.format(f"a window, which OpenCV cannot open: {error.err}")) from error
    drawn = [",".join(map(str, map(int, box))) for box in boxes_xywh if min(box[2:]) > 0]
    if not drawn:
        raise UsageError("--select: no box was drawn")
    return drawn
