"""A report as one HTML page that needs no other file."""

import base64
import html
from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import UInt8

from mixformer_jax.reports.content import Report
from mixformer_jax.reports.tables import to_html

_STYLE = """
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
        f"<title>{html.escape(report.title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _image(content: bytes, kind: str, title: str, style: str = "") -> str:
    data = base64.b64encode(content).decode("ascii")
    return f"<img class='{style}' alt='{html.escape(title, quote=True)}' src='data:image/{kind};base64,{data}'>"


def _jpeg(frame: UInt8[np.ndarray, "h w 3"]) -> bytes:
    _, content = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return content.tobytes()
