"""eval/bench_train.py: our step and the peer's, and the time by module."""

import subprocess
import sys
from pathlib import Path

import torch

from eval import bench_train
from eval.bench_train import COLUMNS, load_experiment, random_batch, torch_step

TINY = [
    *(
        "--config.model.depth=1",
        "--config.model.width=32",
        "--config.model.num_heads=2",
        "--config.model.head_width=16",
    ),
    *("--config.model.search_size=64", "--config.model.template_size=32", "--config.model.dtype=float32"),
]


def test_rows_of_both_stages_of_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_train, "missing_torch", lambda: "left out")
    table = tmp_path / "benchmarks.md"
    pretraining = [
        option.replace("config.model", "config.autoencoder.model") for option in TINY if "head_w" not in option
    ]
    pretraining += ["--config.autoencoder.decoder_depth=1", "--config.autoencoder.decoder_width=32"]
    for config, options in (("mixvit_b", TINY), ("trackmae_tiny", pretraining)):
        asked = ["--configs", config, "--batch", "2", "--turns", "1", "--append", str(table)]
        assert bench_train.main([*asked, *options]) == 0
    assert "no comparison with PyTorch: left out" in capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in table.read_text().splitlines() if line.startswith("|")]
    assert tuple(rows[0]) == COLUMNS and [row[3] for row in rows[2:]] == ["ours", "ours"]
    assert [row[1] for row in rows[2:]] == ["mixvit_b", "mixvit_nano pre-training"]
    assert all(float(row[6]) > 0 for row in rows[2:])


def test_time_by_module():
    # In a process of its own, as users start it: the profiler's traces depend on what else a process has done.
    command = [sys.executable, "-m", "eval.bench_train", "--configs", "mixvit_b", "--batch", "2", "--modules", *TINY]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    assert "module: backward mlp  ms: " in run.stdout and "module: forward attention  ms: " in run.stdout


def test_the_peer_learns_one_batch(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, mode: function)
    experiment = load_experiment("mixvit_b", 2, TINY)
    losses = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: (losses.append(loss.item()), backward(loss)))
    advance = torch_step(experiment, random_batch(experiment))
    for _ in range(20):
        advance()
    assert losses[-1] < 0.9 * losses[0]
