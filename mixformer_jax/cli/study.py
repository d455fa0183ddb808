"""`mixformer study`: the paper's studies in small: trains every arm alike, tracks with it, and compares."""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mixformer_jax.cli.console import Parser, UsageError, positive, tell_stopped
from mixformer_jax.config_files import project_configs
from mixformer_jax.files import write_atomically
from mixformer_jax.signals import Stopped, StopSignals, check
from mixformer_jax.text_tables import markdown

ADVICE = "the same command goes on where this one was"
ABOUT = """pretraining   Table 7: from scratch, from MAE on tracking data, from TrackMAE
attention     Table 4: asymmetric against symmetric attention
head          Table 6: pyramidal against plain corner head

Every arm is a training of the config mixvit_nano with one template, of equal length, for each of several seeds; the
weights of several steps on the way are tracked with, too. OUT/STUDY.md, .json and .png hold tables and curves. The same
command goes on where it was stopped; arms that studies share are trained once."""
MIXFORMER = ("-m", "mixformer_jax")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        title: for tables.
        pretraining: config of the pre-training that it starts from; None: from scratch.
        changes: settings of the config mixvit_nano.
    """

    title: str
    pretraining: str | None = None
    changes: Mapping[str, str] = dataclasses.field(default_factory=dict)


ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        "scratch": Arm("from scratch"),
        "mae": Arm("MAE", "mae_tiny"),
        "trackmae": Arm("TrackMAE", "trackmae_tiny"),
        "symmetric": Arm("TrackMAE, symmetric attention", "trackmae_tiny", {"model.attention": "symmetric"}),
        "plain": Arm("TrackMAE, plain corner head", "trackmae_tiny", {"model.head": "corner"}),
    }
)
STUDIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pretraining": ("scratch", "mae", "trackmae"),
        "attention": ("trackmae", "symmetric"),
        "head": ("trackmae", "plain"),
    }
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all arms share."""

    train_root: Path | None
    test_root: Path
    out: Path
    steps: int
    points: int
    pretraining_steps: int | None

    def run(self, arm: str, seed: int) -> Path:
        """The folder of one training."""
        return self.out / "arms" / arm / f"seed{seed}"

    def pretraining(self, name: str) -> Path:
        """The folder of one pre-training."""
        return self.out / "pretraining" / name

    def options(self, name: str, out: Path, changes: Mapping[str, Any]) -> list[str | Path]:
        """Arguments of a command that trains by one of the project's configs."""
        data = {} if self.train_root is None else {"data.root": self.train_root}
        settings = [f"--config.{key}={value}" for key, value in {**data, **changes}.items()]
        return ["--config", project_configs()[name], "--out", out, *settings]

    def points_at(self) -> list[int]:
        """The steps that are tracked with."""
        return [self.steps * point // self.points for point in range(1, self.points + 1)]


class Programs:
    """Runs programs, several at a time, each on its share of the processors; none outlives this process."""

    def __init__(self, jobs: int, log_folder: Path) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if jobs > len(cores):
            raise ValueError(f"--jobs {jobs}: there are {len(cores)} processors")
        self.jobs = jobs
        self._shares = [cores[i::jobs] for i in range(jobs)]
        self._log_folder = log_folder
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, name: str, *arguments: str | Path) -> None:
        """Runs `python ARGUMENTS`; its output goes to a log file.

        Raises:
            RuntimeError: it failed; the end of the log is in the message.
        """
        log = self._log_folder / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            with self._lock:
                if self._stopped:
                    raise RuntimeError("stopped")
                share = self._shares.pop()
                command = [sys.executable, *map(str, arguments)]
                # A session of its own: Ctrl-C would reach it beside the signal from `closing`, and at a second one a
                # training does not save.
                process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
                os.sched_setaffinity(process.pid, share)
                self._running.add(process)
            try:
                status = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
                    self._shares.append(share)
        if status:
            tail = log.read_bytes()[-1000:].decode(errors="replace")
            raise RuntimeError(f"{name} ended with status {status}; the end of {log}:\n{tail}")

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Whatever happens, no program is left behind; a training saves before it goes."""
        try:
            yield
        finally:
            with self._lock:
                self._stopped = True
                for process in self._running:
                    process.terminate()


def train_arm(programs: Programs, setup: Setup, arm: str, seed: int) -> None:
    """Trains one arm with one seed, and tracks with the weights of all points."""
    chosen, run, name = ARMS[arm], setup.run(arm, seed), f"{arm}_seed{seed}"
    every = setup.steps // setup.points
    changes = {
        "tracker.num_online_templates": 0,
        "train.seed": seed,
        "train.steps": setup.steps,
        "train.checkpoint_every": every,
        "train.keep_every": every,
        "train.validate_every": every,
        **chosen.changes,
    }
    if chosen.pretraining is not None:
        changes["train.init"] = setup.pretraining(chosen.pretraining)
    programs.run(name, *MIXFORMER, "train", *setup.options("mixvit_nano", run, changes))
    for step in setup.points_at():
        weights, results = run / f"model_{step}.safetensors", run / "results"
        where = ("--dataset", "folder", "--root", str(setup.test_root), "--tracker-name", f"step{step}")
        programs.run(name, *MIXFORMER, "evaluate", *where, "--out", results, "--weights", weights)


def pretrain_for(programs: Programs, setup: Setup, name: str) -> None:
    """Runs one of the pre-trainings."""
    changes = {} if setup.pretraining_steps is None else {"train.steps": setup.pretraining_steps}
    programs.run(name, *MIXFORMER, "pretrain", *setup.options(name, setup.pretraining(name), changes))


def score(setup: Setup, arm: str, seed: int) -> dict[int, dict[str, float]]:
    """The headline numbers of one run, in percent, by step."""
    from mixformer_jax.datasets.sequences import open_dataset
    from mixformer_jax.evaluation.metrics import benchmark_rules
    from mixformer_jax.evaluation.scoring import find_results, score_results

    sequences = open_dataset("folder", setup.test_root)
    files = find_results(setup.run(arm, seed) / "results", [sequence.name for sequence in sequences])
    scores = score_results(files, "folder", sequences, benchmark_rules("folder"))
    return {int(tracker.name.removeprefix("step")): tracker.headline for tracker in scores.trackers}


def to_markdown(
    arms: Sequence[str], found: Mapping[str, Sequence[Mapping[int, Mapping[str, float]]]], step: int
) -> str:
    """The table: means over the seeds and their sample deviation at one step."""
    metrics = list(found[arms[0]][0][step])
    rows = [["", *metrics, "AUC by seed"]]
    for arm in arms:
        values = np.array([[run[step][metric] for metric in metrics] for run in found[arm]])
        cells = [f"{mean:.1f}" for mean in values.mean(0)]
        if len(values) > 1:
            cells = [f"{cell} ± {deviation:.1f}" for cell, deviation in zip(cells, values.std(0, ddof=1), strict=True)]
        seeds = ", ".join(f"{run[step]['AUC']:.1f}" for run in found[arm])
        rows.append([ARMS[arm].title, *cells, seeds])
    return markdown(rows)


def draw(arms: Sequence[str], found: Mapping[str, Sequence[Mapping[int, Mapping[str, float]]]]) -> bytes:
    """AUC against steps of training: the mean of the seeds as a line, every seed as a point. PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for arm in arms:
        steps = sorted(found[arm][0])
        values = np.array([[run[step]["AUC"] for step in steps] for run in found[arm]])
        (line,) = axes.plot(steps, values.mean(0), "-", label=ARMS[arm].title)
        for each in values:
            axes.plot(steps, each, "o", color=line.get_color(), markersize=4, alpha=0.6)
    axes.set_xlabel("steps of fine-tuning")
    axes.set_ylabel("AUC, percent")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def add_study(parser: Parser) -> None:
    """The arguments of `mixformer study`."""
    parser.describe(run_study, "--study pretraining --out runs/studies", about=ABOUT)
    parser.add_argument("--study", required=True, choices=tuple(STUDIES))
    out_help = "gets STUDY.md, .json, .png and all runs"
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help=out_help)
    parser.add_argument("--train-root", type=Path, metavar="DIR", help="default: the configs' own")
    test_root = Path("../shared/data/smoke")
    parser.add_argument("--test-root", type=Path, default=test_root, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--steps", type=positive, default=400, metavar="N", help="of every arm's training (400)")
    points_help = "steps to track with, evenly spaced (4)"
    parser.add_argument("--points", type=positive, default=4, metavar="N", help=points_help)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--pretraining-steps", type=positive, metavar="N", help="default: the configs' own")
    jobs_help = "trainings at a time, each on its share of processors (1)"
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help=jobs_help)


def run_study(args: argparse.Namespace) -> int:
    """Runs what is left of one study."""
    if args.steps % args.points:
        raise UsageError(f"--steps {args.steps} does not divide into --points {args.points}")
    # Whatever a training still has to save, it is waited for.
    with StopSignals("mixformer study", ADVICE) as signals, signals.saving():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    out = args.out.resolve()
    train_root = None if args.train_root is None else args.train_root.resolve()
    setup = Setup(train_root, args.test_root.resolve(), out, args.steps, args.points, args.pretraining_steps)
    arms = STUDIES[args.study]
    try:
        programs = Programs(args.jobs, out / "logs")
        with ThreadPoolExecutor(args.jobs) as threads, programs.closing():
            wanted = dict.fromkeys(ARMS[arm].pretraining for arm in arms)
            _all(threads, [(pretrain_for, programs, setup, name) for name in wanted if name is not None])
            _all(threads, [(train_arm, programs, setup, arm, seed) for seed in args.seeds for arm in arms])
    except Stopped as stopped:
        return tell_stopped(stopped, ADVICE, "mixformer study")
    except (RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error

    found = {arm: [score(setup, arm, seed) for seed in args.seeds] for arm in arms}
    table = to_markdown(arms, found, args.steps)
    record = {"study": args.study, "steps": args.steps, "seeds": args.seeds, "arms": found}
    write_atomically(out / f"{args.study}.json", json.dumps(record, indent=1))
    write_atomically(out / f"{args.study}.md", table)
    write_atomically(out / f"{args.study}.png", draw(arms, found))
    print(table)
    print(f"wrote {out / args.study}.md, .json, .png")
    return 0


def _all(threads: ThreadPoolExecutor, calls: Sequence[tuple[Any, ...]]) -> None:
    """Makes all calls; the first that fails ends it."""
    waiting = {threads.submit(*call): call for call in calls}
    done = 0
    while waiting:
        check()
        for future in wait(waiting, 0.2, FIRST_COMPLETED).done:
            future.result()
            done += 1
            print(f"{done} of {len(calls)}: {' '.join(str(x) for x in waiting.pop(future)[3:])}", flush=True)
