"""Putting a report on disk."""

import json
import math
from pathlib import Path
from typing import Any

from mixformer_jax.evaluation.result_names import printable
from mixformer_jax.files import write_atomically
from mixformer_jax.reports.content import Report
from mixformer_jax.reports.page import to_page
from mixformer_jax.reports.plots import draw_figure
from mixformer_jax.reports.tables import to_csv, to_latex, to_markdown, to_text


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
