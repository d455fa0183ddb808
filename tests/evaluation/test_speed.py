"""eval/speed.py: stages that add up to a step, and its table."""

import jax
import numpy as np
import pytest

from eval import speed
from eval.turns import PUBLISHED, published_peak
from mixformer_jax.models.config import size_config
from mixformer_jax.planning.profile import profile_model


@pytest.fixture
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("quick_compilation")
def test_stages_and_their_costs(tmp_path, capsys):
    table = tmp_path / "benchmarks.md"
    options = ["--weights", "mixvit_tiny", "--turns", "1", "--size", "96x64", "--append", str(table)]
    assert speed.main(options) == 0
    printed = capsys.readouterr().out
    assert "mixvit_tiny_online on " in printed and "stage: scan" in printed
    header, _rule, *lines = [
        line.strip("| ").split(" | ") for line in table.read_text().splitlines() if line.startswith("|")
    ]
    assert tuple(header) == speed.COLUMNS
    rows = {line[5]: dict(zip(header, line, strict=True)) for line in lines}
    assert list(rows) == [
        "decode",
        "crop",
        "upload",
        "backbone",
        "head",
        "SPM",
        "readback",
        "encode",
        "step",
        "scan",
        "product",
    ]
    assert all(float(row["ms"]) > 0 and row["targets"] == "1" for row in rows.values())
    costs = profile_model(size_config("mixvit_tiny"), 2)
    assert float(rows["backbone"]["GMAC"]) == pytest.approx(costs.backbone.frame / 1e9, abs=0.005)
    assert rows["scan"]["GMAC"] == rows["step"]["GMAC"]
    assert float(rows["backbone"]["peak"].rstrip("%")) > 0 and rows["crop"]["peak"].strip() == ""
    assert rows["product"]["peak"] == "100.0%"


@pytest.mark.parametrize("options", [["--batch", "1,x"], ["--size", "640"], ["--batch", "0"], ["--turns", "0"]])
def test_numbers_that_make_no_sense(options, capsys):
    with pytest.raises(SystemExit):
        speed.main(options)
    assert "--batch" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="unknown model 'magic'"):
        speed.main(["--model", "magic"])


class Card:
    platform = "gpu"

    def __init__(self, device_kind):
        self.device_kind = device_kind


def test_peaks_are_the_makers_and_unknown_for_unknown_devices():
    card = Card("NVIDIA H100 80GB HBM3")
    assert published_peak(card, "bfloat16") == 989.4e12 and published_peak(card, "float32") == 494.7e12
    assert published_peak(Card("Abacus 9"), "bfloat16") is None
    assert all(np.isfinite(bfloat16) for bfloat16, _ in PUBLISHED.values())
