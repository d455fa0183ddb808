"""The studies in small and the default tracker's stages: what they would run, and what they make of results."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from mixformer_jax import cli
from mixformer_jax.cli import study
from mixformer_jax.cli.study import Programs
from mixformer_jax.config_files import default_settings, load_config, load_study
from mixformer_jax.convert.pretrained import hand_over
from mixformer_jax.models.autoencoder import Autoencoder
from mixformer_jax.models.mixformer import variable_shapes
from mixformer_jax.reports.studies import interval
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.pretraining import PretrainExperiment
from pretrain import default_tracker

ROOT = Path(__file__).resolve().parents[2]


def changed(arguments):
    """The experiment that a program's command line names."""
    arguments = [*map(str, arguments)]
    config = arguments[arguments.index("--config") + 1]
    overrides = [argument for argument in arguments if argument.startswith("--config.")]
    kind = PretrainExperiment if "autoencoder" in load_config(config) else Experiment
    return kind.from_mapping(load_config(config, overrides, default_settings(kind)).to_dict())


class Recorder(Programs):
    """Programs that only note what they were asked to run."""

    def __init__(self):
        self.calls = []

    def run(self, name, *arguments):
        self.calls.append(arguments)


def setup(tmp_path, table="table7", scale="tiny", **changes):
    return study.Setup(table, load_study(table), scale, tmp_path, "folder", tmp_path / "test", **changes)


def test_a_row_is_trained_from_its_pretraining_and_tracked_with(tmp_path):
    recorder, prepared = Recorder(), setup(tmp_path, steps=40, pretraining_steps=60)
    study.pretrain_for(recorder, prepared, "trackmae_tiny")
    study.train_row(recorder, prepared, "trackmae", 3)
    study.track_row(recorder, prepared, "trackmae", 3)
    pretraining, training = map(changed, recorder.calls[:2])
    assert (pretraining.train.steps, pretraining.autoencoder.num_templates) == (60, 1)
    assert (training.train.seed, training.train.steps, training.train.checkpoint_every) == (3, 40, 10)
    assert training.train.init == str(tmp_path / "pretraining_tiny" / "trackmae_tiny")
    tracking = [*map(str, recorder.calls[2])]
    assert tracking[:3] == ["-m", "mixformer_jax", "evaluate"] and "--tracker.num_online_templates=0" in tracking
    assert tracking[tracking.index("--weights") + 1] == str(tmp_path / "table7_tiny" / "trackmae" / "seed3")
    study.train_row(recorder, prepared, "vit_scratch", 3)
    assert changed(recorder.calls[-1]).train.init is None


def test_pretrainings_see_what_the_trainings_see_and_have_their_encoder(tmp_path):
    recorder = Recorder()
    data = {
        "train_root": tmp_path / "data",
        "overrides": ("--config.data.render=device", "--config.model.dtype=bfloat16", "--config.train.workers=0"),
    }
    for table, row in (("table6", "corner_v1"), ("fig7", "mae12_d4"), ("table7", "mae_tracking")):
        prepared = setup(tmp_path, table, **data)
        study.pretrain_for(recorder, prepared, "mae_tiny")
        study.train_row(recorder, prepared, row, 0)
        pretraining, training = map(changed, recorder.calls[-2:])
        assert {each.data.root for each in (pretraining, training)} == {str(tmp_path / "data")}
        assert {each.data.render for each in (pretraining, training)} == {"device"}
        assert pretraining.data.exclude == training.data.exclude and training.model.dtype == "bfloat16"
        assert pretraining.train.workers == training.train.workers == 0
        assert training.train.init == str(recorder.calls[-2][recorder.calls[-2].index("--out") + 1])
        # What it gives fits, decoder blocks included.
        source = pretraining.autoencoder
        variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variable_shapes(Autoencoder(source)))
        start = hand_over(variables, source, training.model)
        assert not [name for name in start.fresh if "/backbone/" in name]


def test_one_training_serves_the_rows_of_table_8(tmp_path):
    recorder, prepared = Recorder(), setup(tmp_path, "table8")
    study.train_row(recorder, prepared, "online_score", 1)
    scores = changed(recorder.calls[0])
    assert (scores.train.stage, scores.train.init) == ("score", str(tmp_path / "table8_tiny" / "online" / "seed1"))
    for row, weights, settings in (
        ("fixed", "online", 1),
        ("online", "online", 0),
        ("online_score", "online_score", 0),
    ):
        study.track_row(recorder, prepared, row, 1)
        call = [*map(str, recorder.calls[-1])]
        assert call[call.index("--weights") + 1] == str(tmp_path / "table8_tiny" / weights / "seed1")
        assert call[call.index("--out") + 1] == str(tmp_path / "table8_tiny" / row / "seed1" / "results")
        assert call.count("--tracker.num_online_templates=0") == settings


def test_at_full_size_it_is_the_paper_s(tmp_path):
    recorder, prepared = Recorder(), setup(tmp_path, scale="full")
    study.pretrain_for(recorder, prepared, "trackmae_vit_b")
    study.train_row(recorder, prepared, "trackmae", 0)
    pretraining, training = map(changed, recorder.calls)
    assert training.train.init == str(tmp_path / "pretraining_full" / "trackmae_vit_b")
    assert (pretraining.train.batch_size, training.train.steps) == (1024, 117_187)
    assert training.model.name == "mixvit_b_corner_v3" and set(training.data.datasets) == set(pretraining.data.datasets)


@pytest.fixture
def scored(tmp_path):
    """Results of two rows and two seeds of Table 7 on one clip: perfect boxes, and some that are off."""
    boxes_xywh = np.tile([10.0, 10.0, 20.0, 20.0], (5, 1))
    clip = tmp_path / "test" / "clip"
    clip.mkdir(parents=True)
    for number in range(1, 6):
        cv2.imwrite(str(clip / f"{number:08}.jpg"), np.zeros((48, 64, 3), np.uint8))
    np.savetxt(clip / "groundtruth.txt", boxes_xywh, delimiter=",")
    prepared = setup(tmp_path)
    for row, seed, shift in (("vit_scratch", 0, 100), ("vit_scratch", 1, 10), ("trackmae", 0, 2), ("trackmae", 1, 0)):
        folder = prepared.run(row, seed) / "results" / row
        folder.mkdir(parents=True)
        np.savetxt(folder / "clip.txt", boxes_xywh + np.array([shift, 0, 0, 0]), delimiter=",")
    return prepared


def test_the_table_stands_beside_the_paper_s(scored):
    text = study.write_study(scored, [0, 1], ["vit_scratch", "trackmae"], {"mae": "needs ImageNet"})
    record = json.loads((scored.out / "table7_tiny.json").read_text())
    aucs = {row: [each["AUC"] for each in runs] for row, runs in record["rows"].items()}
    assert aucs["trackmae"][1] > 95 and aucs["vit_scratch"][0] < 25
    line = next(line for line in text.splitlines() if line.startswith("| trackmae "))
    first, second = aucs["trackmae"]
    assert f"| {(first + second) / 2:.1f} ± " in line and f"| {first:.1f}, {second:.1f} |" in line
    assert line.endswith("| 66.0 | +9.8 |") and "| not here: needs ImageNet |  |  | 68.5 |" in text
    picture = cv2.imread(str(scored.out / "table7_tiny.png"))
    assert picture.shape[1] > 600 and np.ptp(picture) == 255
    assert (scored.out / "table7_tiny.md").read_text() in text


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_an_interval_is_student_s(values):
    found = interval(values)
    low, high = ttest_1samp(values, 0).confidence_interval(0.95) if len(set(values)) > 1 else (values[0], values[0])
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high), abs=1e-6)


def test_one_seed_has_no_interval():
    assert str(interval([31.25])) == "31.2" and interval([31.25]).half is None


def test_what_is_refused_before_anything_is_trained(tmp_path, capsys):
    for arguments, complaint in (
        (["table9", "--scale", "tiny"], "table9: no such table"),
        (["7", "--scale", "tiny", "--rows", "mea"], "--rows mea: not in table7, which has: cvt_scratch"),
        (["7", "--scale", "tiny", "--seeds", "1", "1"], "the same seed twice"),
        (["7", "--scale", "full"], "not there: .*data/lasot.*data/got10k.*pretrained/.*study plan table7"),
        (
            ["7", "--scale", "tiny", "--config.train.keep_every=5", "--train-root", str(tmp_path / "none")],
            "there: .*none",
        ),
        (["7", "--scale", "tiny", "--config.train.wrokers=0"], "no such setting; did you mean train.workers"),
    ):
        assert cli.main(["study", "run", *arguments, "--out", str(tmp_path / "out")]) == 2
        assert re.search(complaint, capsys.readouterr().err), complaint
    assert not (tmp_path / "out").exists()


def test_rows_are_listed_and_planned(capsys):
    assert cli.main(["study", "list", "7", "fig7"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^table7:trackmae +MixViT, TrackMAE.* 66\.0 +37\.86 +7\.9 +runs/trackmae_vit_b", out, re.MULTILINE
    )
    assert cli.main(["study", "plan", "4", "--mfu", "0.5", "--topologies", "h200:8"]) == 0
    out = capsys.readouterr().out
    assert "A plan at an MFU of 50%, not a measurement." in out
    operations = load_study("table4").rows["asymmetric"].train_gflops * 1e9 * 6 * 30e6
    hours, speed = re.search(r"table4:asymmetric +4\.2 +30 +([\d.]+) +([\d,]+)", out).groups()
    assert float(hours) == pytest.approx(operations / (8 * 989e12 * 0.5) / 3600, abs=0.05)
    assert int(speed.replace(",", "")) == pytest.approx(30e6 * 8 * 989e12 * 0.5 / operations, rel=0.01)
    assert cli.main(["study", "plan", "4", "--mfu", "30"]) == 2


def test_a_program_that_fails_is_named_with_the_end_of_its_log(tmp_path):
    programs = Programs(1, tmp_path)
    with programs.closing():
        programs.run("good", "-c", "print('fine')")
        assert (tmp_path / "good.log").read_text() == "fine\n"
        with pytest.raises(RuntimeError, match=r"bad ended with status 3.*\n.*no such thing"):
            programs.run("bad", "-c", "import sys; print('no such thing'); sys.exit(3)")
    with pytest.raises(RuntimeError, match="stopped"):
        programs.run("late", "-c", "")


@pytest.mark.parametrize("changes", [[], ["--config.data.root=elsewhere"]])
def test_stages_of_the_default_tracker_hand_over(tmp_path, changes):
    pretraining, nano, tiny, scores = default_tracker.stages(tmp_path, changes)
    assert changed(pretraining).autoencoder.num_templates == 1
    assert changed(nano).train.init == str(tmp_path / "trackmae_tiny") and changed(nano).train.stage == "box"
    assert changed(tiny).train.init == str(tmp_path / "mixvit_nano") and changed(tiny).train.stage == "box"
    assert changed(nano).tracker == changed(tiny).tracker
    assert changed(nano).data.exclude == changed(tiny).data.exclude == changed(pretraining).data.exclude
    assert scores[1] == tmp_path / "mixvit_tiny" and scores[4:] == changes
    folders = [stage[stage.index("--out") + 1] for stage in (pretraining, nano, tiny, scores)]
    assert folders == [tmp_path / name for name in default_tracker.STAGES]
    if changes:
        assert {changed(stage).data.root for stage in (pretraining, nano, tiny)} == {"elsewhere"}


def test_the_programs_that_others_start_are_there(tmp_path):
    recorder = Recorder()
    study.train_row(recorder, setup(tmp_path), "trackmae", 0)
    study.track_row(recorder, setup(tmp_path), "trackmae", 0)
    study.pretrain_for(recorder, setup(tmp_path), "mae_tiny")
    programs = [*default_tracker.stages(tmp_path, []), *recorder.calls]
    heads = {tuple(map(str, program[: [*map(str, program)].index("--out")])) for program in programs}
    without_options = {
        tuple(itertools.takewhile(lambda text: text not in ("--config", "--dataset"), head)) for head in heads
    }
    assert len(without_options) == 4, without_options  # train, pretrain, evaluate, mined_scores.py RUN
    for program in without_options:
        found = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, check=False)
        assert found.returncode == 0 and "usage: " in found.stdout, found.stderr


def test_a_stage_that_has_begun_needs_none_before_it(tmp_path):
    """What lies on a borrowed machine: the newest checkpoint of one stage, or the weights of the one before."""
    assert default_tracker.stage_to_go_on_with(tmp_path) == 0
    (tmp_path / "trackmae_tiny").mkdir()
    (tmp_path / "trackmae_tiny" / "model.safetensors").touch()
    assert default_tracker.stage_to_go_on_with(tmp_path) == 1
    (tmp_path / "trackmae_tiny" / "checkpoints" / "250").mkdir(parents=True)  # at home: weights of what may go on
    assert default_tracker.stage_to_go_on_with(tmp_path) == 0
    (tmp_path / "mixvit_nano" / "checkpoints" / "500").mkdir(parents=True)
    (tmp_path / "mixvit_tiny" / "checkpoints").mkdir(parents=True)  # begun, and stopped before it saved
    assert default_tracker.stage_to_go_on_with(tmp_path) == 1
    (tmp_path / "mixvit_tiny" / "model.safetensors").touch()
    assert default_tracker.stage_to_go_on_with(tmp_path) == 3
    (tmp_path / "mixvit_tiny_mined").mkdir()
    (tmp_path / "mixvit_tiny_mined" / "model.safetensors").touch()
    assert default_tracker.stage_to_go_on_with(tmp_path) == 4


@pytest.mark.parametrize("argument", ["--root=pool", "pool"])
def test_the_default_tracker_knows_its_arguments(argument, capsys):
    with pytest.raises(SystemExit):
        default_tracker.main([argument])
    assert f"unknown arguments: {argument}" in capsys.readouterr().err


def test_a_stage_whose_time_is_up_may_save(tmp_path):
    saved = tmp_path / "saved"
    program = (
        "import pathlib, signal, sys, time\n"
        f"def save(*_): pathlib.Path({str(saved)!r}).write_text('yes'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"pathlib.Path({str(saved)!r}).write_text('ready')\n"
        "time.sleep(60)\n"
    )
    assert default_tracker.run_until(["-c", program], time.monotonic() + 3) is None
    assert saved.read_text() == "yes"
    assert default_tracker.run_until(["-c", "import sys; sys.exit(4)"], None) == 4


def test_ctrl_c_reaches_a_stage_once(tmp_path):
    """As from a terminal, to all of the foreground's processes."""
    signals = tmp_path / "signals"
    stage = (
        "import pathlib, signal, sys, time\n"
        f"file = pathlib.Path({str(signals)!r})\n"
        "def note(number, frame):\n"
        "    with file.open('a') as out: out.write(f'{number}\\n')\n"
        "signal.signal(signal.SIGTERM, note), signal.signal(signal.SIGINT, note)\n"
        "file.write_text('')\n"
        "while not file.read_text(): time.sleep(0.05)\n"
        "time.sleep(0.5)\n"
    )
    driver = f"from pretrain import default_tracker; default_tracker.run_until(['-c', {stage!r}], None)"
    process = subprocess.Popen(
        [sys.executable, "-c", driver], cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL
    )
    while not signals.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    assert signals.read_text().split() == [str(int(signal.SIGTERM))]
