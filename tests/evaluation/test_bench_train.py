"""eval/bench_train.py: our step and the peer's, and the time by module."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from eval import bench_train
from eval.bench_step import random_values
from eval.bench_train import COLUMNS, has_peer, load_experiment, random_batch, torch_step
from eval.torch_autoencoder import AutoencoderPeer
from mixformer_jax.models.autoencoder import Autoencoder, draw_masking

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
    command += ["--config.model.head=query", "--config.model.head_norm=frozen"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    assert "module: backward mlp  ms: " in run.stdout and "module: forward attention  ms: " in run.stdout


PLAIN_AUTOENCODER = [
    *(option.replace("config.model", "config.autoencoder.model") for option in TINY if "head_w" not in option),
    *(f"--config.autoencoder.model.{each}" for each in ("patch_embed=linear", "positions=sincos", "patch_size=16")),
    *("--config.autoencoder.decoder_depth=1", "--config.autoencoder.decoder_width=32"),
]


@pytest.mark.parametrize(
    ("config", "options"),
    [("mixvit_b", TINY), ("trackmae_tiny", PLAIN_AUTOENCODER), ("mae_tiny", PLAIN_AUTOENCODER)],
)
def test_the_peer_learns_one_batch(monkeypatch, config, options):
    monkeypatch.setattr(torch, "compile", lambda function, mode: function)
    experiment = load_experiment(config, 2, options)
    assert has_peer(experiment)
    losses = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: (losses.append(loss.item()), backward(loss)))
    advance = torch_step(experiment, random_batch(experiment))
    for _ in range(20):
        advance()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("config", ["trackmae_tiny", "mae_tiny"])
def test_the_autoencoders_peer_computes_the_same(config):
    experiment = load_experiment(config, 2, PLAIN_AUTOENCODER)
    autoencoder, batch = Autoencoder(experiment.autoencoder), random_batch(experiment)
    variables = random_values(autoencoder)
    images = {name: value.astype(np.float32) / 100 - 1.2 for name, value in batch.items()}
    masking = draw_masking(experiment.autoencoder, jax.random.key(3), 2)
    shown = [jnp.asarray(images[name]) for name in ("search", "templates") if name in images]
    expected = autoencoder.apply(variables, shown[0], masking, *shown[1:]).patches
    peer = AutoencoderPeer(experiment.autoencoder)
    peer.load_variables(variables)
    given = [torch.from_numpy(images[name]) for name in ("search", "templates") if name in images]
    visible = torch.from_numpy(np.array(masking.visible, np.int64))
    found = peer(given[0], visible, *(given[1:] or [None]))
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=2e-5)
