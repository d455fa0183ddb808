"""Timings of a very small model are complete, and its row lands in the right table."""

import datetime

import jax
import numpy as np
import pytest

from mixformer_jax.cli.bench import COLUMNS, Timing, device_name, measure
from mixformer_jax.models.config import MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import build_model, variable_shapes
from mixformer_jax.text_tables import append_rows, markdown
from mixformer_jax.tracking.tracker import Tracker

DATE = datetime.date(2026, 1, 2)
TIMING = Timing("mixvit_b", "bfloat16", "H200", (360, 640), 1.234, 2.0, 3.0, 0.5, 120.26, 7.0)


def test_measure():
    config = MixFormerConfig("small", 64, 32, width=16, depth=1, num_heads=2, head_width=16)
    # Any numbers will do, and compiling an initialisation takes longer than everything else here.
    shapes = variable_shapes(build_model(config))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), shapes)
    tracker = Tracker(config, TrackerConfig(num_online_templates=0), variables)
    timing = measure(tracker, num_frames=6, size=(90, 160))
    assert (timing.model, timing.dtype, timing.size) == ("small", "float32", (90, 160))
    assert timing.device == device_name(jax.devices()[0]) and timing.device
    assert min(timing.decode_ms, timing.crop_ms, timing.model_ms, timing.fps, timing.warm_up_s) > 0
    with pytest.raises(ValueError, match="at least 1"):
        measure(tracker, num_frames=0)


def test_table():
    header, rule, row = markdown([COLUMNS, TIMING.cells(DATE)]).splitlines()
    assert header == "| " + " | ".join(COLUMNS) + " |"
    assert rule.count("---") == len(COLUMNS) == row.count(" | ") + 1
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["2026-01-02", "mixvit_b", "bfloat16", "H200", "640x360"]
    assert cells[5:11] == ["1.23", "2.00", "3.00", "0.50", "120.3", "7.0"]
    assert cells[11] == jax.__version__


def test_rows_are_added_to_the_table_that_is_there(tmp_path):
    path, row = tmp_path / "benchmarks.md", TIMING.cells(DATE)
    table = markdown([COLUMNS, row])
    line = table.splitlines()[2]
    append_rows(path, COLUMNS, [row])
    append_rows(path, COLUMNS, [row])
    assert path.read_text() == f"# Benchmarks\n\n{table}{line}\n"
    path.write_text(f"{path.read_text()}\nWords below, then a table of other columns.\n\n| a |\n|---|\n| 1 |\n")
    append_rows(path, COLUMNS, [row])
    append_rows(path, ["a"], [["2"]])
    other = "| a |\n|---|\n| 1 |\n| 2 |\n"
    assert path.read_text() == (
        f"# Benchmarks\n\n{table}{line}\n{line}\n\nWords below, then a table of other columns.\n\n{other}"
    )
    assert [p.name for p in path.parent.iterdir()] == ["benchmarks.md"]
