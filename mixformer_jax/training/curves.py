"""The training curves of a run as a picture."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# What has no curve of its own, or one that tells little.
_LEFT_OUT = {"kind", "step", "samples_per_s", "outside_step", "seconds"}


def draw_curves(lines: Sequence[dict[str, Any]]) -> bytes:
    """A PNG with a panel for every metric: training as a line, validation as points.

    Args:
        lines: events of `MetricsLog`.
    """
    trained = [line for line in lines if line["kind"] == "train"]
    validated = [line for line in lines if line["kind"] == "validation"]
    names = list(dict.fromkeys(name for line in (*validated, *trained) for name in line if name not in _LEFT_OUT))
    columns = 3
    rows = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_title(name.replace("_", " "), fontsize=10)
        for label, events, style in (("training", trained, "-"), ("validation", validated, "o-")):
            points = [(line["step"], line[name]) for line in events if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
        if name.startswith("loss") and all(line.get(name, 1.0) > 0 for line in (*trained, *validated)):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7)
    for axes in figure.axes[-columns:]:
        axes.set_xlabel("step", fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()
