"""eval/bench_all.py: what it makes of the tables of its parts; the programs have tests of their own."""

import importlib
import json

import pytest

from eval import bench_all
from eval.bench_all import PARTS, read_tables, run_part
from mixformer_jax.text_tables import append_rows


@pytest.mark.parametrize("name", PARTS)
def test_parts_have_the_columns_that_are_shown(name):
    part = PARTS[name]
    module = importlib.import_module(f"eval.{part.program}")
    columns = module.MODULE_COLUMNS if "--modules" in part.options else module.COLUMNS
    shown = [part.what, part.time[0], (part.rate or ("",))[0], part.ratio or "", *part.more]
    assert set(filter(None, shown)) <= set(columns)


def test_one_table_of_all_parts_and_what_failed(tmp_path, monkeypatch, capsys):
    steps = ("date", "model", "device", "step", "dtype", "online", "ms", "boxes/s", "time over ours", "versions")
    of_step = ("2026-11-27", "m", "a card", "ours", "bfloat16", "1", "2.5", "400", "1.00", "jax 0.10.2")
    append_rows(tmp_path / "steps.md", steps, [of_step])
    append_rows(tmp_path / "steps.md", ("date", "run", "seconds"), [("2026-11-27", "first", "9.1")])
    rows = read_tables(tmp_path / "steps.md")
    assert rows == [dict(zip(steps, of_step, strict=True)), {"date": "2026-11-27", "run": "first", "seconds": "9.1"}]
    told = {"tracking": (rows[:1], None), "modules": ([], "status 1: no such config")}
    monkeypatch.setattr(bench_all, "run_part", lambda part, *_: told[next(n for n in PARTS if PARTS[n] is part)])

    assert bench_all.main(["--parts", "tracking,modules", "--out", str(tmp_path / "bench")]) == 1
    printed = capsys.readouterr()
    assert "modules: status 1: no such config" in printed.err
    table = (tmp_path / "bench.md").read_text()
    assert table == printed.out and table.startswith("2026-11-27; a card; jax 0.10.2\n\n| part | model |")
    assert "| tracking | m | ours | 2.5 ms | 400 boxes/s | 1.00 | dtype bfloat16, online 1 |\n" in table
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["parts"] == {"tracking": rows[:1], "modules": []} and list(record["failed"]) == ["modules"]

    with pytest.raises(SystemExit):
        bench_all.main(["--parts", "trakcing"])
    assert "--parts trakcing: expected some of stage 1,tracking" in capsys.readouterr().err


def test_a_part_that_takes_too_long_is_ended_and_said(tmp_path):
    rows, wrong = run_part(PARTS["stage 1"], True, tmp_path, 0.05)
    assert rows == [] and wrong == "took more than the 0 s that were left"
