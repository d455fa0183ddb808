"""The studies in small and the default tracker's stages: what they would run, and what they make of results."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mixformer_jax.cli import study
from mixformer_jax.config_files import default_settings, load_config
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.pretraining import PretrainExperiment
from pretrain import default_tracker

ROOT = Path(__file__).resolve().parents[2]
METRICS = {"AUC": 50.0, "OP50": 60.0}


def changed(arguments):
    """The config that a program's command line names."""
    config = next(argument for argument in arguments if str(argument).endswith(".py") and "configs" in str(argument))
    overrides = [argument for argument in map(str, arguments) if argument.startswith("--config.")]
    kind = PretrainExperiment if "pretrain" in config.parent.name else Experiment
    return kind.from_mapping(load_config(config, overrides, default_settings(kind)).to_dict())


class Recorder(study.Programs):
    """Programs that only note what they were asked to run."""

    def __init__(self):
        self.calls = []

    def run(self, name, *arguments):
        self.calls.append(arguments)


def setup(tmp_path, **changes):
    values = {"train_root": None, "test_root": tmp_path, "out": tmp_path, "steps": 800, "points": 4}
    return study.Setup(**values | {"pretraining_steps": 300} | changes)


@pytest.mark.parametrize("arm", sorted(study.ARMS))
def test_arms_differ_in_what_they_are_about_and_in_nothing_else(tmp_path, arm):
    programs = Recorder()
    study.train_arm(programs, setup(tmp_path), arm, 3)
    training, *tracking = programs.calls
    found = changed(training)
    assert (found.train.seed, found.train.steps, found.train.keep_every) == (3, 800, 200)
    pretraining = study.ARMS[arm].pretraining
    assert found.train.init == (None if pretraining is None else str(tmp_path / "pretraining" / pretraining))
    assert found.model.attention == ("symmetric" if arm == "symmetric" else "asymmetric")
    assert found.model.head == ("corner" if arm == "plain" else "corner_pyramid")
    tracked = [next(str(x) for x in call if str(x).endswith(".safetensors")) for call in tracking]
    assert [name.rpartition("_")[2] for name in tracked] == [f"{step}.safetensors" for step in (200, 400, 600, 800)]


def test_pretrainings_see_what_the_trainings_see(tmp_path):
    programs = Recorder()
    for name in ("mae_tiny", "trackmae_tiny"):
        study.pretrain_for(programs, setup(tmp_path, train_root=tmp_path / "data"), name)
    study.train_arm(programs, setup(tmp_path, train_root=tmp_path / "data"), "scratch", 0)
    mae, trackmae, scratch = (changed(call) for call in programs.calls[:3])
    assert {each.data.root for each in (mae, trackmae, scratch)} == {str(tmp_path / "data")}
    assert mae.data.exclude == trackmae.data.exclude == scratch.data.exclude
    assert mae.train == trackmae.train and mae.train.steps == 300
    assert (mae.autoencoder.num_templates, trackmae.autoencoder.num_templates) == (0, 1)


def test_scores_come_from_the_result_files_by_step(tmp_path):
    boxes_xywh = np.tile([10.0, 10.0, 20.0, 20.0], (5, 1))
    clip = tmp_path / "data" / "clip"
    clip.mkdir(parents=True)
    for number in range(1, 6):
        cv2.imwrite(str(clip / f"{number:08}.jpg"), np.zeros((48, 64, 3), np.uint8))
    np.savetxt(clip / "groundtruth.txt", boxes_xywh, delimiter=",")
    prepared = setup(tmp_path, test_root=tmp_path / "data")
    for step, shift in ((100, 0.0), (200, 100.0)):
        folder = prepared.run("scratch", 0) / "results" / f"step{step}"
        folder.mkdir(parents=True)
        np.savetxt(folder / "clip.txt", boxes_xywh + np.array([shift, 0, 0, 0]), delimiter=",")
    found = study.score(prepared, "scratch", 0)
    assert sorted(found) == [100, 200]
    # The given box of the first of five frames counts.
    assert found[100]["OP50"] == 100 and found[200]["OP50"] == pytest.approx(20)


def test_table_and_curve():
    found = {
        "scratch": [{10: {**METRICS, "AUC": auc}} for auc in (30.0, 34.0)],
        "mae": [{10: {**METRICS, "AUC": 40.0}}] * 2,
    }
    table = study.to_markdown(("scratch", "mae"), found, 10)
    assert "| from scratch | 32.0 ± 2.8 | 60.0 ± 0.0 | 30.0, 34.0 |" in table
    assert "| MAE | 40.0 ± 0.0 |" in table
    picture = cv2.imdecode(np.frombuffer(study.draw(("scratch", "mae"), found), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[0] > 300 and np.ptp(picture) == 255


def test_a_program_that_fails_is_named_with_the_end_of_its_log(tmp_path):
    programs = study.Programs(1, tmp_path)
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
    study.train_arm(recorder, setup(tmp_path), "scratch", 0)
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
