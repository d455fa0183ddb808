"""Success, precision and normalised-precision plots (needs matplotlib, extra `eval`)."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixformer_jax.evaluation.metrics import (
    CENTER_THRESHOLDS,
    NORM_CENTER_THRESHOLDS,
    OVERLAP_THRESHOLDS,
    Curves,
)
from mixformer_jax.files import write_atomically


def write_plots(overall: Mapping[str, Curves], benchmark: str, out_dir: Path) -> list[Path]:
    """Three PNG files, a line for each tracker, the legend ranked by the number that belongs to the plot.

    Args:
        overall: tracker -> its mean curves over the benchmark.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    plots = [
        ("success", OVERLAP_THRESHOLDS, "overlap threshold", "success, share of frames", "AUC", "auc"),
        (
            "precision",
            CENTER_THRESHOLDS,
            "centre error threshold (pixels)",
            "precision, share of frames",
            "P",
            "precision20",
        ),
        (
            "norm_precision",
            NORM_CENTER_THRESHOLDS,
            "normalised centre error threshold",
            "normalised precision, share of frames",
            "P_norm",
            "norm_precision20",
        ),
    ]
    paths = []
    for curve, thresholds, x_label, y_label, number_name, number in plots:
        figure = _figure()
        axes = figure.add_subplot()
        ranked = sorted(overall.items(), key=lambda item: -float(getattr(item[1], number)))
        for rank, (name, curves) in enumerate(ranked):
            # Ten colours, then the same again dashed, then dotted.
            axes.plot(
                thresholds,
                getattr(curves, curve),
                color=f"C{rank % 10}",
                linestyle=("-", "--", ":")[rank // 10 % 3],
                label=f"{name} [{getattr(curves, number):.1f}]",
            )
        axes.set(xlabel=x_label, ylabel=y_label, title=f"{benchmark}, [{number_name}]", xlim=(0, thresholds[-1]))
        axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
        paths.append(out_dir / f"{curve}.png")
        write_atomically(paths[-1], image.getvalue())
    return paths


def _figure() -> Any:
    try:
        # Not pyplot: it keeps figures and a display backend in the background.
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plots need matplotlib, which is not installed: pip install 'mixformer-jax[eval]'",
            name="matplotlib",
        ) from error
    return Figure(figsize=(6.4, 4.8), layout="constrained")
