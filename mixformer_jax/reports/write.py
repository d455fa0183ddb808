"""A report on disk: its plots, its page, which needs no other file, and its tables in every form."""

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from mixformer_jax.evaluation.results import printable
from mixformer_jax.extras import install_line
from mixformer_jax.files import write_atomically
from mixformer_jax.reports.content import Figure, Panel, Report
from mixformer_jax.reports.tables import to_csv, to_html, to_latex, to_markdown, to_text

# As many trackers have a colour of their own; then the same again dashed, then dotted.
COLOURS = 10
LINE_STYLES = ("-", "--", ":")
PANEL_COLUMNS = 4
# Legends of more entries would hide the curves of a small panel.
MAX_LEGEND = 12

_CSS = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1400px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15em .7em; text-align: right; border-bottom: 1px solid #eee; }
th:first-child { text-align: left; font-weight: normal; } thead th { font-weight: 600; border-bottom: 1px solid #888; }
thead th:first-child { font-weight: 600; }
.scroll { overflow-x: auto; }
.figures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1em; } .figures img { width: 100%; }
.figures img.wide { grid-column: 1 / -1; }
.strip { margin: 1em 0; } .strip div { display: grid; grid-template-columns: repeat(4, 1fr); gap: 6px; }
.strip img { width: 100%; } .strip p { margin: .3em 0; }
.notes { color: #555; padding-left: 1.2em; } summary { cursor: pointer; } details { margin: .5em 0; }
"""


def to_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        report: what it shows.
        pictures: PNG files of its figures, by name.
    """
    parts = [f"<h1>{html.escape(report.title)}</h1>"]
    parts.append("<ul class='notes'>" + "".join(f"<li>{html.escape(note)}</li>" for note in report.notes) + "</ul>")
    for table in report.tables:
        if table.place == "main":
            parts.append(f"<h2>{html.escape(table.title)}</h2>\n<div class='scroll'>{to_html(table)}</div>")
    if report.figures:
        images = "".join(
            _image(pictures[figure.name], "png", figure.title, "wide" if len(figure.panels) > 1 else "")
            for figure in report.figures
        )
        parts.append(f"<h2>Plots</h2>\n<div class='figures'>{images}</div>")
    if report.strips:
        parts.append("<h2>Worst sequences</h2>\n<p>Dashed: ground truth. Solid: the tracker.</p>")
    for strip in report.strips:
        frames = "".join(_image(_jpeg(frame), "jpeg", strip.title) for frame in strip.frames)
        parts.append(f"<div class='strip'><p>{html.escape(strip.title)}</p><div>{frames}</div></div>")
    parts.append("<h2>More tables</h2>")
    for table in report.tables:
        if table.place != "main":
            summary = f"<summary>{html.escape(table.title)} ({len(table.rows)} rows)</summary>"
            parts.append(f"<details>{summary}<div class='scroll'>{to_html(table)}</div></details>")
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(report.title)}</title><style>{_CSS}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _image(content: bytes, kind: str, title: str, style: str = "") -> str:
    data = base64.b64encode(content).decode("ascii")
    return f"<img class='{style}' alt='{html.escape(title, quote=True)}' src='data:image/{kind};base64,{data}'>"


def _jpeg(frame: UInt8[np.ndarray, "h w 3"]) -> bytes:
    _, content = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return content.tobytes()


def summary(report: Report) -> str:
    """The main tables as plain text."""
    return _text(report, ("main",))


def report_json(report: Report) -> str:
    """Everything at full precision. NaN is null and infinity "inf", which JSON has not."""
    return json.dumps(_plain({**report.numbers, "notes": report.notes}), indent=1, allow_nan=False) + "\n"


def write_report(report: Report, out_dir: str | Path) -> list[Path]:
    """Writes report.txt, .md, .tex, .json, a CSV file a table, a PNG file a figure and index.html; returns the paths.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    out_dir = Path(out_dir)
    trackers = list(report.numbers["trackers"])
    pictures = {figure.name: draw_figure(figure, trackers) for figure in report.figures}
    documented = [table for table in report.tables if table.place != "detail"]
    notes = "\n".join(f"- {printable(note)}" for note in report.notes)
    files: dict[str, str | bytes] = {
        "report.txt": _text(report, ("main", "more")),
        "report.md": "\n".join([f"## {report.title}\n", *map(to_markdown, documented), notes]) + "\n",
        "report.tex": "\n".join(map(to_latex, documented)),
        "report.json": report_json(report),
        **{f"{table.name}.csv": to_csv(table) for table in report.tables},
        **{f"{name}.png": picture for name, picture in pictures.items()},
        "index.html": to_page(report, pictures),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        # Names of files may hold bytes that are no text.
        whole = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        write_atomically(out_dir / name, whole)
    return [out_dir / name for name in files]


def _text(report: Report, places: tuple[str, ...]) -> str:
    tables = [to_text(table) for table in report.tables if table.place in places]
    return "\n".join([*tables, *map(printable, report.notes)]) + "\n"


def _plain(value: Any) -> Any:
    """Arrays as lists, and no NaN or infinity."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


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
            linestyle=LINE_STYLES[place // COLOURS % len(LINE_STYLES)],
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
