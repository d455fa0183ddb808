"""Every figure of speed on this machine, by the programs beside this one: one table, as Markdown and JSON.

    python -m eval.bench_all --out bench                   # bench.md and bench.json; under ten minutes on a GPU
    python -m eval.bench_all --parts "stage 1,tracking"    # some of them, printed
    python -m eval.bench_all --small                       # tiny models: that it runs; the figures tell nothing

Each part is a process of its own: it has the device's memory for itself, and one that fails or takes too long loses no
other. Their order is that of what one wants to know first; those that do not fit the time are left out, and said to be.
For PyTorch's part: pip install torch triton. The loader's pool and the trainings' are demo clips.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from eval.bench_loading import write_clips
from eval.turns import plain_parser
from mixformer_jax.cli.console import positive
from mixformer_jax.files import write_atomically
from mixformer_jax.text_tables import markdown

COLUMNS = ("part", "model", "what", "time", "rate", "time over ours", "more")


@dataclasses.dataclass(frozen=True)
class Part:
    """A program of `eval`, and which columns of its table are those of this one."""

    program: str  # module
    options: tuple[str, ...]  # its arguments
    small: tuple[str, ...]  # with `--small` those too, or in their place
    what: str  # column with what is timed
    time: tuple[str, str] = ("ms", "ms")  # column and unit; "" where there is none, as of those below
    rate: tuple[str, str] = ("", "")
    ratio: str = ""  # column that compares with ours
    more: tuple[str, ...] = ()  # columns worth a look
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of the environment

    def row(self, name: str, cells: Mapping[str, str]) -> tuple[str, ...]:
        """A row of the table out of one of the program's."""
        figures = [f"{cells[column]} {unit}" if cells.get(column) else "" for column, unit in (self.time, self.rate)]
        model = next((cells[key] for key in ("config", "model", "command") if key in cells), "")
        more = ", ".join(f"{key} {cells[key]}" for key in self.more if cells[key])
        return name, model, cells[self.what], *figures, cells.get(self.ratio, ""), more


TINY = tuple(
    f"--config.model.{each}"
    for each in ("depth=1", "width=32", "num_heads=2", "head_width=16", "search_size=64", "template_size=32")
)
CLIPS_ALONE = tuple(f"--config.data.{each}" for each in ("mix.still=0", "mix.pasted=0", "mix.region=0"))
IN_POOL = ("--config.data.exclude=()", "--config.data.groups=()", *CLIPS_ALONE)
_of_step = functools.partial(Part, what="step", ratio="time over ours")
training = functools.partial(_of_step, rate=("samples/s", "samples/s"), more=("MFU", "temporary GB"))
tracking = functools.partial(_of_step, rate=("boxes/s", "boxes/s"), more=("dtype", "online"))
SMALL_STEP = ("--batch", "2", "--turns", "1")
SMALL_AUTOENCODER = tuple(
    f"--config.autoencoder.model.{each}" for each in ("depth=1", "patch_embed=linear", "positions=sincos")
)
PARTS = {
    "stage 1": training("bench_train", ("--configs", "mixvit_b", "--turns", "8"), (*SMALL_STEP, *TINY)),
    "tracking": tracking(
        "bench_step", ("--models", "mixvit_b_online", "--turns", "8"), ("--depth", "1", "--turns", "1")
    ),
    "TrackMAE": training(
        "bench_train",
        ("--configs", "trackmae_vit_b", "--turns", "8"),
        ("--configs", "trackmae_tiny", *SMALL_STEP, *SMALL_AUTOENCODER),
    ),
    "32 targets": tracking(
        "bench_step",
        ("--models", "mixvit_b_online", "--targets", "32", "--turns", "5"),
        ("--depth", "1", "--targets", "2", "--turns", "1"),
    ),
    "frame by stage": Part(
        "speed",
        ("--model", "mixvit_b_online", "--turns", "5"),
        ("--model", "mixvit_nano", "--turns", "1"),
        what="stage",
        rate=("targets/s", "targets/s"),
        more=("peak",),
    ),
    "second start": Part(
        "bench_start",
        ("--root", "{pool}", *CLIPS_ALONE, "--config.train.batch_size=64"),
        ("--train", "mixvit_nano", "--config.train.batch_size=2", *TINY),
        what="run",
        time=("seconds", "s"),
        ratio="over the first",
    ),
    "loader": Part(
        "bench_rendering",
        ("--root", "{pool}", *IN_POOL, "--turns", "5"),
        ("--config", "mixvit_nano", "--turns", "1", "--config.train.batch_size=2", *TINY),
        what="samples",
        time=("", ""),
        rate=("samples/s", "samples/s"),
        more=("times the step's", "cores"),
    ),
    "modules": Part(
        "bench_train",
        ("--configs", "mixvit_b", "--modules"),
        (*SMALL_STEP, *TINY),
        what="module",
        more=("share",),
        variables={"XLA_FLAGS": "--xla_gpu_enable_command_buffer="},
    ),
}


def read_tables(file: Path) -> list[dict[str, str]]:
    """The rows of all Markdown tables of a file, by column."""
    rows: list[dict[str, str]] = []
    columns: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        if not line.startswith("|"):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not columns:
            columns = cells
        elif set(cells) != {"---"}:
            rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def run_part(part: Part, small: bool, pool: Path, seconds: float) -> tuple[list[dict[str, str]], str | None]:
    """The rows of its table, and what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        table, said = Path(folder) / "table.md", Path(folder) / "said"
        options = [each.replace("{pool}", str(pool)) for each in (*part.options, *(part.small if small else ()))]
        command = [sys.executable, "-m", f"eval.{part.program}", *options, "--append", str(table)]
        with said.open("wb") as log:
            try:
                status = subprocess.run(
                    command, env={**os.environ, **part.variables}, stdout=log, stderr=log, timeout=seconds
                ).returncode
                wrong = f"status {status}: {said.read_text(errors='replace')[-1000:]}" if status else None
            except subprocess.TimeoutExpired:
                wrong = f"took more than the {seconds:.0f} s that were left"
        return read_tables(table), wrong


def main(arguments: list[str] | None = None) -> int:
    parser = plain_parser(__doc__)
    parser.add_argument("--out", type=Path, metavar="NAME", help="writes NAME.md and NAME.json (default: prints alone)")
    parser.add_argument("--parts", default=",".join(PARTS), help="separated by commas (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny models and one turn")
    parser.add_argument("--minutes", type=positive, default=10, help="for all parts (default: %(default)s)")
    args = parser.parse_args(arguments)
    names = args.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts {','.join(unknown)}: expected some of {','.join(PARTS)}")
    began = time.monotonic()
    found: dict[str, list[dict[str, str]]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder)
        if any("{pool}" in PARTS[name].options for name in names):
            write_clips(pool / "videos", clips=1 if args.small else 6)
        for name in names:
            left = 60 * args.minutes - (time.monotonic() - began)
            print(f"{name}: {left:.0f} s are left", file=sys.stderr, flush=True)
            found[name], wrong = run_part(PARTS[name], args.small, pool, max(1.0, left))
            if wrong:
                failed[name] = wrong
                print(f"{name}: {wrong}", file=sys.stderr, flush=True)
    rows = [(name, cells) for name, of_part in found.items() for cells in of_part]
    # Above the rows of all parts: the devices and versions that they name.
    about = [dict.fromkeys(cells[key] for _, cells in rows if key in cells) for key in ("date", "device", "versions")]
    lines = [PARTS[name].row(name, cells) for name, cells in rows]
    table = f"{'; '.join(', '.join(each) for each in about if each)}\n\n{markdown([COLUMNS, *lines])}"
    print(table, end="")
    if args.out is not None:
        record = {"small": args.small, "seconds": time.monotonic() - began, "parts": found, "failed": failed}
        write_atomically(args.out.with_name(f"{args.out.name}.md"), table)
        write_atomically(args.out.with_name(f"{args.out.name}.json"), json.dumps(record, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
