"""`mixformer data check`, `pack`, `pool` and `show`: data sets and training samples."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixformer_jax.cli.console import Parser, positive, print_table
from mixformer_jax.config_files import CONFIG_PREFIX, default_settings, load_config

SHOWN_FAULTS = 50
# Options of `pool` with the defaults of `data.pool.folder.PoolFolderConfig`.
POOL = {
    "target_side": (40.0, "larger targets of videos are shrunk to this side, sqrt(w * h)"),
    "context": (10.0, "side of what is kept around them, in sides of the target"),
    "max_frames": (96, "of a sequence, evenly in time"),
    "photo_side": (256, "photographs are shrunk until their longer side is at most this"),
    "cutout_side": (64.0, "cut-outs likewise, sqrt(w * h)"),
    "quality": (70, "of the WebP pictures"),
}


def add_data(parser: Parser) -> None:
    commands = {
        "check": ("Look at every annotation and frame of a data set; the status tells of faults.", _add_check),
        "pack": ("Cut what training can see of a data set, once, into shards that are fast to read.", _add_pack),
        "pool": ("Shrink videos/ and images/ into a few small files; data.root can name them, too.", _add_pool),
        "show": ("Draw training samples with their boxes on one sheet.", _add_show),
    }
    parser.add_commands(commands)


def _add_dataset(parser: Parser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="its folder, in the published layout")
    dataset_help = "how to read it: got10k, lasot, coco, folder, ... (default: as an export of an annotation tool)"
    parser.add_argument("--dataset", metavar="D", help=dataset_help)
    parser.add_argument("--split", metavar="S", help="a published part of it, such as vottrain, train or test")
    parser.add_argument("--list", type=Path, dest="list_file", metavar="FILE", help="sequences to take, one a line")
    cores = os.cpu_count() or 1
    parser.add_argument("--workers", type=positive, default=cores, metavar="N", help="default: %(default)s")
    faults_help = "to print (default: %(default)s)"
    parser.add_argument("--faults", type=positive, default=SHOWN_FAULTS, metavar="N", help=faults_help)


def _open(args: argparse.Namespace) -> Any:
    from mixformer_jax.datasets.sequences import annotation_kind, open_dataset

    return open_dataset(args.dataset or annotation_kind(args.root), args.root, args.split, args.list_file)


def _add_check(parser: Parser) -> None:
    parser.describe(run_check, "GOT-10k --dataset got10k --split vottrain", "cvat_export")
    _add_dataset(parser)


def run_check(args: argparse.Namespace) -> int:
    """Walks through a data set; 1 when something is wrong with it, or with how videos are decoded here."""
    from mixformer_jax.datasets.check import check_dataset
    from mixformer_jax.media.decoders import decoder_name, try_interlaced

    dataset = _open(args)
    report = check_dataset(dataset, args.workers, progress=True)
    is_safe, interlaced = try_interlaced()
    print_table([*report.lines(), ("videos", f"decoded by {decoder_name()}; interlaced ones: {interlaced}")])
    _print_faults([str(fault) for fault in report.faults], args.faults)
    return int(bool(report.faults) or not is_safe)


def _add_pack(parser: Parser) -> None:
    parser.describe(run_pack, "GOT-10k packed/got10k --dataset got10k --split vottrain")
    _add_dataset(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the shards; packing goes on where it stopped")
    side_help = "larger targets are shrunk to this side, sqrt(w * h) (default: %(default)s)"
    parser.add_argument("--target-side", type=float, default=80.0, metavar="PX", help=side_help)
    parser.add_argument("--quality", type=int, default=90, metavar="Q", help="of the JPEGs (default: %(default)s)")
    parser.add_argument("--lossless", action="store_true", help="PNGs of full resolution; several times as large")


def run_pack(args: argparse.Namespace) -> int:
    """Packs a data set; 1 when some of it could not be read."""
    from mixformer_jax.data.packing import PackConfig, pack

    config = PackConfig(args.target_side, args.quality, args.lossless)
    dataset = _open(args)
    report = pack(dataset, args.out, config, args.workers, progress=True)
    each = f", {report.nbytes / report.frames / 1024:.1f} KiB a frame" if report.frames else ""
    lines = [
        ("sequences", f"{len(dataset):,}"),
        ("frames", f"{report.frames:,} packed now; {report.kept_shards:,} shards were there"),
        ("size", f"{report.nbytes / 2**20:,.1f} MiB{each}"),
        ("faults", f"{len(report.faults):,}" if report.faults else "none"),
        ("use it", f'data.datasets.NAME = {{"root": "{args.out}"}}'),
    ]
    print_table(lines)
    _print_faults(report.faults, args.faults)
    return int(bool(report.faults))


def _add_pool(parser: Parser) -> None:
    parser.describe(run_pool, "shared/data pool")
    parser.add_argument("root", type=Path, metavar="ROOT", help="holds videos/ and images/, or one of them")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    for name, (default, text) in POOL.items():
        option, text = f"--{name.replace('_', '-')}", f"{text} (default: %(default)s)"
        parser.add_argument(option, type=type(default), default=default, metavar="N", help=text)


def run_pool(args: argparse.Namespace) -> int:
    from mixformer_jax.data.pool.folder import PoolFolderConfig, write_pool_folder

    config = PoolFolderConfig(**{name: getattr(args, name) for name in POOL})
    report = write_pool_folder(args.root, args.out, config, os.cpu_count() or 1)
    lines = [
        ("sequences", f"{report.clips:,}"),
        ("frames", f"{report.frames:,}; {report.frames_left_out:,} left out"),
        ("photographs", f"{report.photos:,}, {report.cutouts:,} cut-outs"),
        ("size", f"{report.nbytes / 2**20:,.1f} MiB in {report.files} files"),
        ("use it", f'data.root = "{args.out}"'),
    ]
    print_table(lines)
    return 0


def _add_show(parser: Parser) -> None:
    parser.describe(run_show, "--config mixvit_tiny --count 32", overrides=CONFIG_PREFIX)
    parser.add_config()
    parser.add_argument("--out", type=Path, default=Path("samples.png"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--count", type=positive, default=16, metavar="N", help="samples (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="number of the first (default: %(default)s)")
    parser.add_argument("--columns", type=positive, default=4, metavar="N", help="default: %(default)s")


def run_show(args: argparse.Namespace) -> int:
    from mixformer_jax.data.pool.device import DeviceSamples
    from mixformer_jax.data.samples import contact_sheet
    from mixformer_jax.media.images import write_image
    from mixformer_jax.media.video import prepare_output
    from mixformer_jax.training.experiment import Experiment
    from mixformer_jax.training.samples import training_samples

    prepare_output(args.out)
    config = load_config(args.config, args.overrides, default_settings(Experiment))
    experiment = Experiment.from_mapping(config.to_dict())
    samples, numbers = training_samples(experiment), range(args.first, args.first + args.count)
    faults: list[str] = []
    if isinstance(samples, DeviceSamples):
        shown = samples.show(numbers)
    else:
        rendered = [samples.render(index) for index in numbers]
        shown = [(each.source, each.sample) for each in rendered]
        faults = [fault for each in rendered for fault in each.faults]
        for index in numbers:
            print(f"{index}: {samples.describe(index)}")
    names = [f"{index} {source}" for index, (source, _) in zip(numbers, shown, strict=True)]
    sheet = contact_sheet([sample for _, sample in shown], names, args.columns)
    write_image(args.out, sheet)
    print_table([("picture", f"{args.out} ({sheet.shape[1]} x {sheet.shape[0]})")])
    _print_faults(faults, SHOWN_FAULTS)
    return 0


def _print_faults(faults: Sequence[str], most: int) -> None:
    from mixformer_jax.evaluation.results import printable

    for fault in faults[:most]:
        print(printable(fault), file=sys.stderr)
    if len(faults) > most:
        print(f"... and {len(faults) - most:,} more; --faults {len(faults)} prints all", file=sys.stderr)
