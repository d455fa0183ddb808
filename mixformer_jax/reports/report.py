"""What a report holds, whatever the benchmark: tables, plots and pictures; and how it is written.

The paper's own rows (Tables 9 to 13) are in `published/`, as printed: fractions for VOT, percent elsewhere. (SiamMask's
SR0.5 and SR0.75 on GOT-10k are in the paper's order.)
"""

import base64
import csv
import dataclasses
import functools
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.metrics import Curves
from mixformer_jax.evaluation.results import printable, read_boxes
from mixformer_jax.evaluation.scoring import TrackerFiles
from mixformer_jax.files import write_atomically
from mixformer_jax.media.images import GROUND_TRUTH, TARGET, draw_box, draw_caption
from mixformer_jax.text_tables import aligned, markdown

_LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {character: f"\\{character}" for character in "&%$#_{}"}
)
Place = Literal["main", "more", "detail"]
# Of CSV files, where the name of the numbers is long.
FILE_NAMES = {"average overlap of valid frames": "average", "A, no restarts": "unsupervised"}


class Row(NamedTuple):
    label: str
    values: tuple[float | None, ...]  # None and NaN: not known


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of numbers, written to `<name>.csv`."""

    name: str
    title: str  # what the numbers are, with their unit
    header: tuple[str, ...]  # of the labels' column, then of the numbers'
    rows: tuple[Row, ...]
    decimals: int = 1  # CSV has all digits
    ranked: bool = False  # higher is better: the best and the second best number of a column are marked
    place: Place = "main"  # "main" tables are printed, "more" are in the documents, "detail" only in CSV and the page

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.header) - 1:
                raise ValueError(f"table {self.name}: row {row.label} has {len(row.values)} values for {self.header}")

    def cells(self, row: Row) -> tuple[str, ...]:
        """The row as text."""
        return (row.label, *("-" if _unknown(value) else f"{value:.{self.decimals}f}" for value in row.values))

    @functools.cached_property
    def ranks(self) -> list[tuple[str | None, str | None]]:
        """The best and the second best printed number of every column; equal numbers share a rank."""
        columns = zip(*(self.cells(row)[1:] for row in self.rows), strict=True) if self.ranked else ()
        best = [sorted({*column} - {"-"}, key=float, reverse=True) for column in columns]
        return [(cells[0] if len(cells) > 1 else None, cells[1] if len(cells) > 2 else None) for cells in best]

    def marked(self, row: Row) -> list[tuple[str, str]]:
        """The row's numbers as text, each with its mark: "best", "second" or none."""
        cells = self.cells(row)[1:]
        ranks = self.ranks or [(None, None)] * len(cells)
        return [
            (cell, "best" if cell == best else "second" if cell == second else "")
            for cell, (best, second) in zip(cells, ranks, strict=True)
        ]


class Line(NamedTuple):
    """One tracker's curve. `tracker` decides its colour, `label` is its entry in the legend."""

    tracker: str
    label: str
    y: Float[np.ndarray, " n"]


class Panel(NamedTuple):
    title: str
    x_label: str
    y_label: str
    x: Float[np.ndarray, " n"]
    lines: tuple[Line, ...]  # the best first


class Figure(NamedTuple):
    """One or more panels, drawn into `<name>.png`."""

    name: str
    title: str
    panels: tuple[Panel, ...]


class Strip(NamedTuple):
    """Frames of a sequence with ground truth and tracked boxes drawn."""

    title: str
    frames: tuple[UInt8[np.ndarray, "h w 3"], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Scores of trackers on one benchmark."""

    title: str  # benchmark and number of sequences
    notes: tuple[str, ...]  # the rules under which the numbers were made, and warnings
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    strips: tuple[Strip, ...]  # the worst sequences of each tracker
    numbers: Mapping[str, Any]  # everything at full precision, for JSON


def to_text(table: Table) -> str:
    cells = [tuple(map(printable, row)) for row in (table.header, *map(table.cells, table.rows))]
    return f"{printable(table.title)}\n{aligned(cells)}"


def to_markdown(table: Table) -> str:
    forms = {"best": "**{}**", "second": "{}", "": "{}"}
    rows = [[_markdown(row.label), *_formatted(table, row, forms)] for row in table.rows]
    return f"### {printable(table.title)}\n\n{markdown([list(map(_markdown, table.header)), *rows], '--:')}"


def to_latex(table: Table) -> str:
    """A tabular for the package booktabs; the best number of a column in bold, the second underlined."""
    forms = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
    rows = [[_latex(row.label), *_formatted(table, row, forms)] for row in table.rows]
    lines = [
        f"% {printable(table.title)}",
        r"\begin{tabular}{l" + "r" * (len(table.header) - 1) + "}",
        r"\toprule",
        " & ".join(map(_latex, table.header)) + r" \\",
        r"\midrule",
        *(" & ".join(cells) + r" \\" for cells in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """All digits; an unknown number is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(table.header)
    for row in table.rows:
        writer.writerow([row.label, *("" if _unknown(value) else repr(value) for value in row.values)])
    return out.getvalue()


def _formatted(table: Table, row: Row, forms: Mapping[str, str]) -> list[str]:
    return [forms[mark].format(text) for text, mark in table.marked(row)]


def _unknown(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _latex(text: str) -> str:
    return printable(text).translate(_LATEX)


def _markdown(text: str) -> str:
    return printable(text).replace("\\", r"\\").replace("|", r"\|")


def best_first(scores: Mapping[str, Any], number: str) -> dict[str, Any]:
    """Trackers' scores by name, sorted by one of their headline numbers; those without it are the last."""
    return dict(sorted(scores.items(), key=lambda item: -np.nan_to_num(item[1].headline[number], nan=-1)))


def assemble(
    benchmark: str,
    headlines: Mapping[str, Mapping[str, float]],
    by_sequence: Mapping[str, Mapping[str, Float[np.ndarray, " s"]]],
    *,
    notes: Sequence[str],
    figures: Sequence[Figure],
    strips: tuple[Strip, ...],
    documented: Sequence[str],
    numbers: Mapping[str, Any],
    tables: Sequence[Table] = (),
    unit: str = "percent",
) -> Report:
    """The report of numbers by tracker and name, of the whole benchmark and by sequence.

    Args:
        documented: numbers whose table by sequence is not for CSV and the page alone.
        numbers: for JSON, beside the benchmark's name; its "sequences" are those of `by_sequence`.
        tables: more of them, behind the headline numbers.
        unit: of all numbers but FPS, which are frames a second; "fractions" have three decimals.
    """
    sequences, decimals = numbers["sequences"], 3 if unit == "fractions" else 1
    title, headers = f"{benchmark}, {len(sequences)} sequences", tuple(next(iter(headlines.values())))
    overall = Table(
        "overall",
        f"{title}; {unit}, and frames a second" if "FPS" in headers else f"{title}, {unit}",
        ("tracker", *headers),
        tuple(Row(name, tuple(each.values())) for name, each in headlines.items()),
        decimals,
        ranked=True,
    )
    by_number = []
    for number in next(iter(by_sequence.values())):
        columns = [each[number] for each in by_sequence.values()]
        rows = tuple(Row(name, tuple(float(each[i]) for each in columns)) for i, name in enumerate(sequences))
        what = f"{number} by sequence, {'frames a second' if number == 'FPS' else unit}"
        place: Place = "more" if number in documented else "detail"
        header, name = ("sequence", *by_sequence), f"sequences_{FILE_NAMES.get(number, number)}"
        by_number.append(Table(name, what, header, rows, decimals, place=place))
    every = (overall, *tables, *compare(benchmark, headlines), *by_number)
    return Report(title, tuple(notes), every, tuple(figures), strips, {"benchmark": benchmark, **numbers})


def tracker_record(
    sequences: Sequence[str],
    headline: Mapping[str, float],
    by_sequence: Mapping[str, Float[np.ndarray, " s"]],
    **more: object,
) -> dict[str, object]:
    """One tracker's numbers for JSON: the headline, what there is beside it, and all numbers by sequence."""
    by_name = {name: {key: values[i].item() for key, values in by_sequence.items()} for i, name in enumerate(sequences)}
    return {**headline, **more, "by_sequence": by_name}


class Source(NamedTuple):
    """Where a benchmark's published numbers are."""

    table: str  # of the paper; also the file's name
    benchmark: str  # in that file
    conditions: str  # under which a measured number compares
    decimals: int = 1


SOURCES: Mapping[str, tuple[Source, ...]] = {
    "got10k": (Source("table10", "got10k", "the test subset's server; * trained on GOT-10k alone"),),
    "lasot": (Source("table10", "lasot", "the 280 test sequences, boxes cut to whole pixels, mixformer rules"),),
    "trackingnet": (Source("table10", "trackingnet", "the test set's server"),),
    "uav123": (Source("table10", "uav123", "all 123 sequences, boxes cut to whole pixels, mixformer rules"),),
    "vot": (
        Source("table9", "vot2020", "VOT2020's masks; ours with Alpha-Refine", 3),
        Source("table11", "vot2022", "VOT2022's boxes (STb), public challenge", 3),
    ),
    "vot_rgbd": (
        Source("table12", "vot_rgbd2022", "VOT-RGBD2022", 3),
        Source("table13", "vot_d2022", "VOT-D2022, whose trackers see depth alone", 3),
    ),
}


def published_rows(source: Source) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """Names of the numbers, and the rows with any of them."""
    file = resources.files(__package__) / "published" / f"{source.table}.csv"
    header, *lines = csv.reader(file.read_text(encoding="utf-8").splitlines())
    columns = [i for i, name in enumerate(header) if name.startswith(f"{source.benchmark}/")]
    rows = [Row(line[0], tuple(float(line[i]) if line[i] else None for i in columns)) for line in lines]
    known = tuple(row for row in rows if any(value is not None for value in row.values))
    return tuple(header[i].partition("/")[2] for i in columns), known


def compare(benchmark: str, measured: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """Measured numbers, by tracker and name, above the published ones; nothing where the paper has none."""
    tables = []
    for source in SOURCES.get(benchmark, ()):
        names, rows = published_rows(source)
        ours = (Row(f"{name} (measured)", tuple(map(numbers.get, names))) for name, numbers in measured.items())
        number = source.table.removeprefix("table")
        title = f"The paper's Table {number}, {source.benchmark}; comparable under: {source.conditions}"
        name, header = f"published_{source.benchmark}", ("tracker", *names)
        tables.append(Table(name, title, header, (*ours, *rows), source.decimals, True, "more"))
    return tables


# By curve: words of the title, and the label of the x axis.
PLOTS = {
    "success": ("success", "overlap threshold"),
    "precision": ("precision", "centre error threshold (pixels)"),
    "norm_precision": ("normalised precision", "normalised centre error threshold"),
}
STRIP_FRAMES, STRIP_WIDTH = 4, 320  # width of each frame in pixels
# So many trackers have a colour of their own; the next ones are dashed, then dotted.
COLOURS = 10
LINE_STYLES = ("-", "--", ":")
PANEL_COLUMNS = 4
MAX_LEGEND = 12  # longer legends would hide the curves of a small panel


def curves(
    title: str,
    x_label: str,
    x: Float[np.ndarray, " n"],
    found: Mapping[str, tuple[float, Float[np.ndarray, " n"]]],
    y_label: str = "share of frames",
    decimals: int = 1,
) -> Panel:
    """A panel with one curve for each tracker; `found` has the number that ranks it and the curve."""
    ranked = sorted(found.items(), key=lambda item: -np.nan_to_num(item[1][0], nan=-1))
    lines = (Line(name, f"{name} [{number:.{decimals}f}]", curve) for name, (number, curve) in ranked)
    return Panel(title, x_label, y_label, x, tuple(lines))


def curve_figures(
    benchmark: str,
    numbers: Sequence[str],
    headlines: Mapping[str, Mapping[str, float]],
    found: Mapping[str, Curves],
    thresholds: Curves,
    measure: str = "",
) -> list[Figure]:
    """Success, precision and normalised-precision plots, as Figs. 11 and 12; the headline `numbers` rank the curves."""
    figures = []
    for (curve, (words, x_label)), number in zip(PLOTS.items(), numbers, strict=True):
        ranked = {name: (headlines[name][number], getattr(each, curve)) for name, each in found.items()}
        title = f"{benchmark}, {words} [{number}{measure}]"
        figures.append(Figure(curve, title, (curves(title, x_label, getattr(thresholds, curve), ranked),)))
    return figures


def worst_strips(
    scores: Mapping[str, Float[np.ndarray, " s"]],
    number: str,
    sequences: Sequence[TrackingSequence],
    boxes_of: Callable[[str, int], Float[np.ndarray, "n 4"]],
    count: int,
) -> tuple[Strip, ...]:
    """The `count` worst sequences of every tracker, the worst first; without frames, a strip has none.

    Of the `scores`, by tracker, higher is better and NaN is left out; `number` is their name, such as AUC. `boxes_of`
    takes a tracker and the position of a sequence, and gives its boxes, xywh in pixels, one a frame. Raises SourceError
    for a frame that cannot be read.
    """
    strips = []
    for tracker, values in scores.items():
        known = np.flatnonzero(~np.isnan(values))
        for position in map(int, known[np.argsort(values[known], kind="stable")][:count]):
            sequence = sequences[position]
            title = f"{tracker} on {sequence.name}: {number} {values[position]:.1f}"
            if sequence.has_frames:
                strips.append(Strip(title, _draw_frames(sequence, boxes_of(tracker, position))))
            else:
                strips.append(Strip(f"{title}; its frames are not there to be shown", ()))
    return tuple(strips)


def strips_of_files(
    by_sequence: Mapping[str, Mapping[str, Float[np.ndarray, " s"]]],
    number: str,
    sequences: Sequence[TrackingSequence],
    files: Sequence[TrackerFiles],
    count: int,
    unusable_boxes: Literal["error", "keep"] = "error",
) -> tuple[Strip, ...]:
    """The worst sequences of every tracker by one of its numbers, with boxes of its first result file."""
    by_name = {tracker.name: tracker for tracker in files}

    def boxes_of(tracker: str, position: int) -> Float[np.ndarray, "n 4"]:
        return np.nan_to_num(read_boxes(by_name[tracker].boxes[position][0], unusable_boxes))

    scores = {tracker: numbers[number] for tracker, numbers in by_sequence.items()}
    return worst_strips(scores, number, sequences, boxes_of, count)


def _draw_frames(
    sequence: TrackingSequence, boxes_xywh: Float[np.ndarray, "n 4"]
) -> tuple[UInt8[np.ndarray, "h w 3"], ...]:
    """Frames spread evenly up to the end of the sequence; the ground truth is dashed."""
    last = min(len(sequence), len(boxes_xywh)) - 1
    frames = []
    for index in np.unique(np.linspace(0, last, STRIP_FRAMES + 1).round().astype(int)[1:]):
        frame = np.ascontiguousarray(sequence.frame(int(index))[..., :3])  # of two streams colour
        scale = STRIP_WIDTH / frame.shape[1]
        picture = cv2.resize(frame, (STRIP_WIDTH, max(1, round(scale * len(frame)))), interpolation=cv2.INTER_AREA)
        if sequence.has_target[index]:
            picture = draw_box(picture, scale * sequence.boxes_xywh[index], GROUND_TRUTH, thickness=2, dashed=True)
        picture = draw_box(picture, scale * np.asarray(boxes_xywh[index]), TARGET, thickness=2)
        frames.append(draw_caption(picture, f"frame {index + 1} of {len(sequence)}"))
    return tuple(frames)


def summary(report: Report, places: Sequence[Place] = ("main",)) -> str:
    """Tables and notes as plain text."""
    tables = [to_text(table) for table in report.tables if table.place in places]
    return "\n".join([*tables, *map(printable, report.notes)]) + "\n"


def report_json(report: Report) -> str:
    """Everything at full precision. NaN is null and infinity "inf", which JSON has not."""
    return json.dumps(_plain({**report.numbers, "notes": report.notes}), indent=1, allow_nan=False) + "\n"


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


def write_report(report: Report, out_dir: str | Path) -> list[Path]:
    """Writes report.txt, .md, .tex and .json, a CSV a table, a PNG a figure, and index.html; returns the paths.
    ModuleNotFoundError without matplotlib or jinja2."""
    out_dir = Path(out_dir)
    trackers = list(report.numbers["trackers"])
    pictures = {figure.name: draw_figure(figure, trackers) for figure in report.figures}
    documented = [table for table in report.tables if table.place != "detail"]
    notes = "\n".join(f"- {printable(note)}" for note in report.notes)
    files: dict[str, str | bytes] = {
        "report.txt": summary(report, ("main", "more")),
        "report.md": "\n".join([f"## {report.title}\n", *map(to_markdown, documented), notes]) + "\n",
        "report.tex": "\n".join(map(to_latex, documented)),
        "report.json": report_json(report),
        **{f"{table.name}.csv": to_csv(table) for table in report.tables},
        **{f"{name}.png": picture for name, picture in pictures.items()},
        "index.html": to_page(report, pictures),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        # File names may hold bytes that are not UTF-8.
        whole = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        write_atomically(out_dir / name, whole)
    return [out_dir / name for name in files]


def to_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """One HTML page with everything inside; `pictures` are the figures' PNG files by name."""
    import jinja2

    templates = jinja2.PackageLoader("mixformer_jax.reports")
    environment = jinja2.Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    environment.filters["jpeg"] = _jpeg
    return environment.get_template("page.html").render(report=report, pictures=pictures)


def _jpeg(frame: UInt8[np.ndarray, "h w 3"]) -> bytes:
    _, content = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return content.tobytes()


def draw_figure(figure: Figure, trackers: Sequence[str]) -> bytes:
    """A PNG file. `trackers` are all of the report, so that each has the same colour in every figure."""
    # Not pyplot: it keeps figures and a display backend in the background.
    from matplotlib.figure import Figure as Canvas

    count = len(figure.panels)
    columns, is_single = min(count, PANEL_COLUMNS), count == 1
    rows = math.ceil(count / columns)
    canvas = Canvas(figsize=(6.4, 4.8) if is_single else (4.2 * columns, 3.4 * rows), layout="constrained")
    for index, panel in enumerate(figure.panels):
        _draw_panel(canvas.add_subplot(rows, columns, index + 1), panel, trackers, is_single)
    if not is_single:
        canvas.suptitle(figure.title)
    image = io.BytesIO()
    canvas.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _draw_panel(axes: Any, panel: Panel, trackers: Sequence[str], is_single: bool) -> None:
    for line in panel.lines:
        place = trackers.index(line.tracker)
        style = LINE_STYLES[place // COLOURS % len(LINE_STYLES)]
        label = printable(line.label).replace("$", r"\$")  # else a formula
        axes.plot(panel.x, line.y, color=f"C{place % COLOURS}", linestyle=style, label=label)
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title, xlim=(panel.x[0], panel.x[-1]))
    axes.set_ylim(0, max([1.0, *(float(line.y.max()) for line in panel.lines)]) * 1.02)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > MAX_LEGEND:
        labels = [*labels[:MAX_LEGEND], f"and {len(labels) - MAX_LEGEND} more"]
        handles = [*handles[:MAX_LEGEND], axes.plot([], [], alpha=0)[0]]
    axes.legend(handles, labels, fontsize="small" if is_single else "x-small")
