"""Figures of a report as PNG files (needs matplotlib, extra `eval`)."""

import io
import math
from collections.abc import Sequence
from typing import Any

from mixformer_jax.evaluation.result_names import printable
from mixformer_jax.extras import install_line
from mixformer_jax.reports.content import Figure, Panel

# As many trackers have a colour of their own; then the same again dashed, then dotted.
COLOURS = 10
_STYLES = ("-", "--", ":")
PANEL_COLUMNS = 4
# Legends of more entries would hide the curves of a small panel.
MAX_LEGEND = 12


def draw_figure(figure: Figure, trackers: Sequence[str]) -> bytes:
    """A PNG.

    Args:
        figure: of one panel, or of several in rows of `PANEL_COLUMNS`.
        trackers: all of the report: a tracker has the same colour in every figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    count = len(figure.panels)
    columns = min(count, PANEL_COLUMNS)
    rows = math.ceil(count / columns)
    single = count == 1
    size = (6.4, 4.8) if single else (4.2 * columns, 3.4 * rows)
    canvas = _canvas(size)
    for index, panel in enumerate(figure.panels):
        _draw_panel(canvas.add_subplot(rows, columns, index + 1), panel, trackers, single)
    if not single:
        canvas.suptitle(figure.title)
    image = io.BytesIO()
    canvas.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _draw_panel(axes: Any, panel: Panel, trackers: Sequence[str], single: bool) -> None:
    for line in panel.lines:
        place = trackers.index(line.tracker)
        axes.plot(
            panel.x,
            line.y,
            color=f"C{place % COLOURS}",
            linestyle=_STYLES[place // COLOURS % len(_STYLES)],
            label=printable(line.label).replace("$", r"\$"),  # else a formula
        )
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title, xlim=(panel.x[0], panel.x[-1]))
    axes.set_ylim(0, max([1.0, *(float(line.y.max()) for line in panel.lines)]) * 1.02)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    more = len(labels) - MAX_LEGEND
    if more > 0:
        labels = [*labels[:MAX_LEGEND], f"and {more} more"]
        handles = [*handles[:MAX_LEGEND], axes.plot([], [], alpha=0)[0]]
    axes.legend(handles, labels, fontsize="small" if single else "x-small")


def _canvas(size: tuple[float, float]) -> Any:
    try:
        # Not pyplot: it keeps figures and a display backend in the background.
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"plots need matplotlib, which is not installed: {install_line('eval')}",
            name="matplotlib",
        ) from error
    return Canvas(figsize=size, layout="constrained")
