"""`mixformer study`: the rows of the paper's tables: which config is which, what they take, and their training."""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from mixformer_jax.cli.console import ADVICE, Parser, UsageError, for_the_user, positive
from mixformer_jax.config_files import (
    CONFIG_PREFIX,
    CONFIGS,
    default_settings,
    load_config,
    load_study,
    project_configs,
)
from mixformer_jax.files import write_atomically
from mixformer_jax.reports.studies import SAMPLES, Study, draw_study, study_markdown
from mixformer_jax.signals import check, saving
from mixformer_jax.text_tables import aligned

MIXFORMER = ("-m", "mixformer_jax")


class Programs:
    """Runs programs, several at a time, each on its share of the processors; none outlives this process."""

    def __init__(self, jobs: int, log_folder: Path) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if jobs > len(cores):
            raise ValueError(f"--jobs {jobs}: there are {len(cores)} processors")
        self._shares = [cores[i::jobs] for i in range(jobs)]
        self._log_folder = log_folder
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, name: str, *arguments: str | Path) -> None:
        """Runs `python ARGUMENTS`; its output goes to a log, whose end is in the RuntimeError where it fails."""
        log = self._log_folder / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            with self._lock:
                if self._stopped:
                    raise RuntimeError("stopped")
                share = self._shares.pop()
                # A session of its own: Ctrl-C would reach it beside the signal from `closing`, and at a second one a
                # training does not save.
                command = [sys.executable, *map(str, arguments)]
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


FULL = "full"
SCALES = {
    "tiny": "the layers of mixvit_nano, 200 steps of 16: minutes a row on a CPU; shows that it runs, not who is better",
    "small": "the same, 4,000 steps of 32, for a GPU (add --config.data.render=device)",
    FULL: "the paper's sizes, data and lengths; see mixformer study plan for what that takes",
}
ABOUT = """Trains the rows of a table, each seed apart, tracks with them, and writes TABLE_SCALE.md, .json and .png into
OUT, beside the paper's numbers. The same command goes on where it was stopped. Scales:
""" + "\n".join(f"  {name:<6} {text}" for name, text in SCALES.items())
PLAN_ABOUT = """Hours are a plan, not measured: the operations of the whole training, counted on the program, over the
chips' peak times --mfu. Data must come as fast as the last columns say. mixformer plan --config TABLE:ROW weighs a
step."""
TOPOLOGIES = ("h200:8", "v5p:4x4x4")
MFU = 0.25
# Where and how samples are made, and on which devices.
FOR_PRETRAININGS = ("data.", "train.workers=", "train.mesh=")


def add_study(parser: Parser) -> None:
    commands = {
        "list": ("Say which config is which row of the paper, its number there, and what it takes.", _add_list),
        "plan": ("Say how many hours the rows take at the paper's size on chips that are not here.", _add_plan),
        "run": ("Train rows, track with them, and write the table beside the paper's.", _add_run),
    }
    parser.add_commands(commands)


def _table(text: str) -> str:
    """`3` -> `table3`; a type for argparse."""
    return f"table{text}" if text.isdigit() else text


def _add_list(parser: Parser) -> None:
    parser.describe(run_list, "", "table7")
    parser.add_argument("tables", nargs="*", type=_table, metavar="TABLE", help="3 to 8, or fig7 (default: all)")


def run_list(args: argparse.Namespace) -> int:
    tables = [name for name, path in project_configs().items() if path.parent == CONFIGS / "tables"]
    for table in args.tables or tables:
        study = load_study(table)
        lines = [("--config", "", "AUC", "GFLOP", "EFLOP", "starts from", "scored with")]
        for name, row in study.rows.items():
            auc = "-" if row.auc is None else f"{row.auc:.1f}"
            cost = "-" if row.weights_of is not None else f"{row.eflops:.1f}"
            start = f"{table}:{row.weights_of}" if row.weights_of else row.init or "scratch"
            with_ = ", ".join(f"{key}={value}" for key, value in row.tracker.items()) or "online templates"
            lines.append((f"{table}:{name}", row.title, auc, f"{row.gflops:.2f}", cost, start, with_))
        print(f"{study.title}\n{aligned(lines, left=(0, 1, 5, 6))}")
    print(
        "AUC: the paper's, LaSOT, percent. GFLOP: 10^9 multiply-accumulates a frame with its templates, as the paper\n"
        f"counts. EFLOP: 10^18 operations of a training on {SAMPLES / 1e6:.0f} million samples."
    )
    return 0


def _add_plan(parser: Parser) -> None:
    parser.describe(run_plan, "table3 --mfu 0.3", about=PLAN_ABOUT)
    parser.add_argument("table", type=_table, metavar="TABLE", help="3 to 8, or fig7")
    parser.add_argument("--mfu", type=float, default=MFU, metavar="M", help="share of the peak (default: %(default)s)")
    topologies_help = f"default: {' '.join(TOPOLOGIES)}"
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES, metavar="T", help=topologies_help)


def run_plan(args: argparse.Namespace) -> int:
    from mixformer_jax.planning.hardware import parse_topology

    if not 0 < args.mfu <= 1:
        raise UsageError(f"--mfu {args.mfu:g}: expected a share of the peak, above 0 and at most 1")
    places = [parse_topology(topology) for topology in args.topologies]
    study = load_study(args.table)
    tasks = [(name, *_cost_of_pretraining(name)) for name in _pretrainings(study, study.rows, FULL)]
    trained = {name: row for name, row in study.rows.items() if row.weights_of is None}  # stage 2 is a fiftieth
    tasks += [(f"{args.table}:{name}", row.eflops, SAMPLES) for name, row in trained.items()]
    header = ["config", "EFLOP", "samples, M"]
    lines = [[*header, *(f"hours, {x.name}" for x in places), *(f"samples/s, {x.name}" for x in places)]]
    total = [0.0] * len(places)
    for name, eflops, samples in tasks:
        hours = [eflops * 1e18 / (x.size * x.chip.flops["bfloat16"] * args.mfu) / 3600 for x in places]
        total = [a + b for a, b in zip(total, hours, strict=True)]
        speeds = (f"{samples / each / 3600:,.0f}" for each in hours)
        lines.append([name, f"{eflops:.1f}", f"{samples / 1e6:.0f}", *(f"{each:.1f}" for each in hours), *speeds])
    lines.append(["all", "", "", *(f"{each:.1f}" for each in total), *[""] * len(places)])
    print(f"{study.title}\nA plan at an MFU of {args.mfu:.0%}, not a measurement.\n{aligned(lines)}", end="")
    return 0


def _cost_of_pretraining(name: str) -> tuple[float, int]:
    """10^18 operations, and samples."""
    from mixformer_jax.planning.record import count_model_flops
    from mixformer_jax.training.pretraining import PretrainExperiment

    experiment = PretrainExperiment.from_mapping(load_config(name).to_dict())
    steps, batch = experiment.train.steps, experiment.train.batch_size
    return count_model_flops(experiment) * steps / 1e18, steps * batch


def _pretrainings(study: Study, rows: Sequence[str] | Mapping[str, Any], scale: str) -> list[str]:
    """Configs of the pre-trainings that rows start from."""
    inits = [study.rows[name].init for name in rows]
    if scale == FULL:
        found = [init.removeprefix("runs/") for init in inits if init is not None and init.startswith("runs/")]
    else:
        found = [stand_in for init in inits if (stand_in := study.stand_ins[init]) is not None]
    return list(dict.fromkeys(found))


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all rows share."""

    table: str  # its name
    study: Study  # its rows
    scale: str  # see `SCALES`
    out: Path  # folder of everything
    dataset: str  # by which reader the rows are scored
    test_root: Path  # its folder
    train_root: Path | None = None  # the pool of small scales; None: the configs' own
    steps: int | None = None  # of every training; None: the configs' own
    pretraining_steps: int | None = None  # likewise
    # Further settings of the trainings, as they were typed; `FOR_PRETRAININGS` hold there, too
    overrides: tuple[str, ...] = ()

    def config(self, row: str) -> str:
        """What --config takes."""
        return f"{self.table}:{row}" + ("" if self.scale == FULL else f"@{self.scale}")

    def run(self, row: str, seed: int) -> Path:
        """The folder of a row's training, or of its results alone."""
        return self.out / f"{self.table}_{self.scale}" / row / f"seed{seed}"

    def weights(self, row: str, seed: int) -> Path:
        """The folder of the training whose weights are scored."""
        found = self.study.rows[row]
        return self.run(row if found.weights_of is None or found.scores else found.weights_of, seed)

    def pretraining(self, name: str) -> Path:
        """The folder of a pre-training, which tables share where they need the same."""
        own = f"{self.table}_" if self.scale != FULL and self.study.pretraining_changes else ""
        return self.out / f"pretraining_{self.scale}" / f"{own}{name}"

    def options(self, config: str, out: Path, changes: Mapping[str, Any]) -> list[str | Path]:
        """Arguments of a command that trains."""
        data = {} if self.train_root is None else {"data.root": self.train_root}
        settings = [f"{CONFIG_PREFIX}{key}={value}" for key, value in {**data, **changes}.items()]
        return ["--config", config, "--out", out, *settings]


def pretrain_for(programs: Programs, setup: Setup, name: str) -> None:
    changes = _length(setup.pretraining_steps)
    if setup.scale != FULL:
        changes |= setup.study.pretraining_changes
    data = [text for text in setup.overrides if text.removeprefix(CONFIG_PREFIX).startswith(FOR_PRETRAININGS)]
    programs.run(name, *MIXFORMER, "pretrain", *setup.options(name, setup.pretraining(name), changes), *data)


def train_row(programs: Programs, setup: Setup, name: str, seed: int) -> None:
    row = setup.study.rows[name]
    changes = {"train.seed": seed, **_length(setup.steps)}
    started = _pretrainings(setup.study, [name], setup.scale)
    if row.scores and row.weights_of is not None:
        changes["train.init"] = setup.run(row.weights_of, seed)
    elif started:
        changes["train.init"] = setup.pretraining(started[0])
    options = setup.options(setup.config(name), setup.run(name, seed), changes)
    programs.run(f"{setup.table}_{name}_seed{seed}", *MIXFORMER, "train", *options, *setup.overrides)


def _length(steps: int | None) -> dict[str, Any]:
    """A run of so many steps, saved and validated four times on the way; None: of the config's own."""
    if steps is None:
        return {}
    every = max(1, steps // 4)
    return {
        "train.steps": steps,
        "train.warmup_steps": min(100, steps // 10),
        "train.checkpoint_every": every,
        "train.validate_every": every,
    }


def track_row(programs: Programs, setup: Setup, name: str, seed: int) -> None:
    """Tracks with the weights of a row as the row says."""
    where = ["--dataset", setup.dataset, "--root", str(setup.test_root), "--tracker-name", name]
    where += ["--split", "test"] if setup.dataset == "lasot" else []
    settings = [f"--tracker.{key}={value}" for key, value in setup.study.rows[name].tracker.items()]
    files: list[str | Path] = ["--out", setup.run(name, seed) / "results", "--weights", setup.weights(name, seed)]
    programs.run(f"{setup.table}_{name}_seed{seed}", *MIXFORMER, "evaluate", *where, *files, *settings)


def score(setup: Setup, name: str, seed: int) -> dict[str, float]:
    """The headline numbers of one run, in percent."""
    from mixformer_jax.datasets.sequences import open_dataset
    from mixformer_jax.evaluation.metrics import benchmark_rules
    from mixformer_jax.evaluation.scoring import find_results, score_results

    split = "test" if setup.dataset == "lasot" else None
    sequences = open_dataset(setup.dataset, setup.test_root, split)
    files = find_results(setup.run(name, seed) / "results", [sequence.name for sequence in sequences], [name])
    return score_results(files, setup.dataset, sequences, benchmark_rules(setup.dataset)).trackers[0].headline


def _add_run(parser: Parser) -> None:
    examples = ("table7 --scale tiny --out runs/studies", "fig7 --scale small --rows mae4,mae12 --out runs/studies")
    parser.describe(run_study, *examples, overrides=CONFIG_PREFIX, about=ABOUT, advice=ADVICE)
    parser.add_argument("table", type=_table, metavar="TABLE", help="3 to 8, or fig7")
    parser.add_argument("--scale", required=True, choices=tuple(SCALES))
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="gets the tables and all runs")
    parser.add_argument("--rows", metavar="R,R", help="default: all that the scale allows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    root_help = "pool to train on (default: the configs' own)"
    parser.add_argument("--train-root", type=Path, metavar="DIR", help=root_help)
    test_help = "sequences to track (default: ../shared/data/smoke; full: data/lasot)"
    parser.add_argument("--test-root", type=Path, metavar="DIR", help=test_help)
    parser.add_argument("--steps", type=positive, metavar="N", help="of every training (default: the scale's)")
    parser.add_argument("--pretraining-steps", type=positive, metavar="N", help="default: the configs' own")
    jobs_help = "trainings at a time, each on its share of processors (1)"
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help=jobs_help)


def run_study(args: argparse.Namespace) -> int:
    study = load_study(args.table)
    names = args.rows.split(",") if args.rows else list(study.rows)
    if unknown := [name for name in names if name not in study.rows]:
        raise UsageError(f"--rows {','.join(unknown)}: not in {args.table}, which has: {', '.join(study.rows)}")
    if len(set(args.seeds)) < len(args.seeds):
        raise UsageError("--seeds: the same seed twice is no second measurement")
    dataset = "lasot" if args.scale == FULL else "folder"
    test_root = args.test_root or Path("data/lasot" if args.scale == FULL else "../shared/data/smoke")
    train_root = None if args.train_root is None else args.train_root.resolve()
    lengths = args.steps, args.pretraining_steps
    data = dataset, test_root.resolve(), train_root
    setup = Setup(args.table, study, args.scale, args.out.resolve(), *data, *lengths, tuple(args.overrides))
    inits = {} if args.scale == FULL else {name: study.rows[name].init for name in names}
    skipped = {name: f"needs {init}" for name, init in inits.items() if init not in study.stand_ins}
    kept = [name for name in names if name not in skipped]
    _refuse_what_is_missing(setup, kept)
    trained = dict.fromkeys(study.rows[name].weights_of or name for name in kept)
    second = [name for name in kept if study.rows[name].scores]
    # Whatever a training still has to save, it is waited for.
    with saving(), for_the_user(RuntimeError, ValueError):
        programs = Programs(args.jobs, setup.out / "logs")
        with ThreadPoolExecutor(args.jobs) as threads, programs.closing():
            run_all(threads, [(pretrain_for, programs, setup, name) for name in _pretrainings(study, kept, args.scale)])
            for rows, do in ((trained, train_row), (second, train_row), (kept, track_row)):
                run_all(threads, [(do, programs, setup, name, seed) for seed in args.seeds for name in rows])
    print(write_study(setup, args.seeds, kept, skipped), end="")
    return 0


def write_study(setup: Setup, seeds: Sequence[int], kept: Sequence[str], skipped: Mapping[str, str]) -> str:
    """Scores the rows and writes table, numbers and picture; returns the table."""
    found = {name: [score(setup, name, seed) for seed in seeds] for name in kept}
    aucs = {name: [each["AUC"] for each in runs] for name, runs in found.items()}
    lengths = {key: n for key, n in (("steps", setup.steps), ("pre-training", setup.pretraining_steps)) if n}
    changed = "".join(f", {key} {value}" for key, value in lengths.items())
    note = (
        f"{setup.study.title}\n\nScale {setup.scale}{changed}; seeds {', '.join(map(str, seeds))}; AUC in percent on "
        f"{setup.dataset} {setup.test_root.name}. After ±: half of a 95% interval over seeds (Student's t; none of one "
        "seed), which says nothing of other sequences or data. The paper's numbers are of LaSOT.\n"
    )
    table = f"{note}\n{study_markdown(setup.study, aucs, skipped)}"
    record = {
        "table": setup.table,
        "scale": setup.scale,
        "steps": setup.steps,
        "pretraining_steps": setup.pretraining_steps,
        "overrides": setup.overrides,
        "seeds": list(seeds),
        "rows": found,
        "paper": {name: setup.study.rows[name].auc for name in found},
        "skipped": dict(skipped),
    }
    place = setup.out / f"{setup.table}_{setup.scale}"
    write_atomically(place.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write_atomically(place.with_suffix(".md"), table)
    if aucs:
        write_atomically(place.with_suffix(".png"), draw_study(setup.study, aucs))
    return f"{table}\nwrote {place}.md, .json, .png\n"


def _refuse_what_is_missing(setup: Setup, names: Sequence[str]) -> None:
    """UsageError before anything is trained."""
    from mixformer_jax.datasets.frame_parts import is_remote
    from mixformer_jax.training.experiment import Experiment

    needed = [setup.test_root] if setup.train_root is None else [setup.test_root, setup.train_root]
    for name in names:
        config = load_config(setup.config(name), setup.overrides, default_settings(Experiment))
        if setup.scale == FULL:
            needed += [Path(each.root) for each in config.data.datasets.values() if not is_remote(each.root)]
            init = setup.study.rows[name].init
            needed += [Path(init)] if init and not init.startswith("runs/") else []
        elif setup.train_root is None:
            needed.append(Path(config.data.root))
    if missing := [str(path) for path in dict.fromkeys(needed) if not path.exists()]:
        plan = f"; `mixformer study plan {setup.table}` says what it takes" if setup.scale == FULL else ""
        raise UsageError(f"not there: {', '.join(missing)}{plan}")


def run_all(threads: ThreadPoolExecutor, calls: Sequence[tuple[Any, ...]]) -> None:
    """Makes all calls; the first that fails ends it."""
    waiting = {threads.submit(*call): call for call in calls}
    while waiting:
        check()
        for future in wait(waiting, 0.2, FIRST_COMPLETED).done:
            future.result()
            do, _, _, *about = waiting.pop(future)
            done = len(calls) - len(waiting)
            print(f"{do.__name__} {done} of {len(calls)}: {' '.join(map(str, about))}", flush=True)
