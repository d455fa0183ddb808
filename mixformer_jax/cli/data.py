"""`mixformer data check`, `pack`, `pool` and `show`: what they take on the command line, and what they print.

Imports stay inside the commands, as in `cli`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mixformer_jax.cli.console import CONFIG_PREFIX, Commands, Parser, positive, print_table

SHOWN_FAULTS = 50


def add_data_commands(parser: Parser) -> None:
    """Gives the parser of `mixformer data` its commands."""
    command = Commands(parser)

    check = command(
        "check",
        run_check,
        "Look at every annotation and frame of a data set; the status tells of faults.",
        "GOT-10k --dataset got10k --split vottrain",
    )
    _add_dataset(check)

    pack = command(
        "pack",
        run_pack,
        "Cut what training can see of a data set, once, into shards that are fast to read.",
        "GOT-10k packed/got10k --dataset got10k --split vottrain",
    )
    _add_dataset(pack)
    pack.add_argument("out", type=Path, metavar="OUT", help="folder of the shards; packing goes on where it stopped")
    pack.add_argument("--target-side", type=float, default=80.0, metavar="PX", help=_SIDE)
    pack.add_argument("--quality", type=int, default=90, metavar="Q", help="of the JPEGs (default: %(default)s)")
    pack.add_argument("--lossless", action="store_true", help="PNGs of full resolution; several times as large")

    pool = command(
        "pool",
        run_pool,
        "Shrink videos/ and images/ into a few small files; data.root can name them, too.",
        "shared/data pool",
    )
    pool.add_argument("root", type=Path, metavar="ROOT", help="holds videos/ and images/, or one of them")
    pool.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    # The defaults are those of `pool_folder.PoolFolderConfig`.
    for name, default, text in (
        ("target-side", 40.0, "larger targets of videos are shrunk to this side, sqrt(w * h)"),
        ("context", 10.0, "side of what is kept around them, in sides of the target"),
        ("max-frames", 96, "of a sequence, evenly in time"),
        ("photo-side", 256, "photographs are shrunk until their longer side is at most this"),
        ("cutout-side", 64.0, "cut-outs likewise, sqrt(w * h)"),
        ("quality", 70, "of the WebP pictures"),
    ):
        pool.add_argument(
            f"--{name}", type=type(default), default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )

    show = command(
        "show",
        run_show,
        "Draw training samples with their boxes on one sheet.",
        "--config mixvit_tiny --count 32",
        overrides=CONFIG_PREFIX,
    )
    show.add_argument("--config", type=Path, required=True, metavar="NAME", help="see mixformer configs; or a file")
    show.add_argument("--out", type=Path, default=Path("samples.png"), metavar="FILE", help="default: %(default)s")
    show.add_argument("--count", type=positive, default=16, metavar="N", help="samples (default: %(default)s)")
    show.add_argument("--first", type=int, default=0, metavar="I", help="number of the first (default: %(default)s)")
    show.add_argument("--columns", type=positive, default=4, metavar="N", help="default: %(default)s")


_SIDE = "larger targets are shrunk to this side, sqrt(w * h) (default: %(default)s)"


def run_check(args: argparse.Namespace) -> int:
    """Walks through a data set; 1 when something is wrong with it, or with how videos are decoded here."""
    from mixformer_jax.datasets.check import check_dataset
    from mixformer_jax.datasets.sequences import open_dataset
    from mixformer_jax.media.decoders import decoder_name
    from mixformer_jax.media.interlaced import try_interlaced

    dataset = open_dataset(args.dataset, args.root, args.split, args.list_file)
    report = check_dataset(dataset, args.workers, progress=True)
    interlaced = try_interlaced()
    print_table([*report.lines(), ("videos", f"decoded by {decoder_name()}; interlaced ones: {interlaced.told}")])
    _print_faults([str(fault) for fault in report.faults], args.faults)
    return int(bool(report.faults) or not interlaced.is_safe)


def run_pack(args: argparse.Namespace) -> int:
    """Packs a data set; 1 when some of it could not be read."""
    from mixformer_jax.data.packing import PackConfig, pack
    from mixformer_jax.datasets.sequences import open_dataset

    config = PackConfig(args.target_side, args.quality, args.lossless)
    dataset = open_dataset(args.dataset, args.root, args.split, args.list_file)
    report = pack(dataset, args.out, config, args.workers, progress=True)
    size = f"{report.nbytes / 2**20:,.1f} MiB" + (
        f", {report.nbytes / report.frames / 1024:.1f} KiB a frame" if report.frames else ""
    )
    print_table(
        [
            ("sequences", f"{len(dataset):,}"),
            ("frames", f"{report.frames:,} packed now; {report.kept_shards:,} shards were there"),
            ("size", size),
            ("faults", f"{len(report.faults):,}" if report.faults else "none"),
            ("use it", f'data.datasets.NAME = {{"root": "{args.out}", "reader": "packed"}}'),
        ]
    )
    _print_faults(report.faults, args.faults)
    return int(bool(report.faults))


def run_pool(args: argparse.Namespace) -> int:
    """Writes a pool folder."""
    from mixformer_jax.data.pool.folder import PoolFolderConfig, write_pool_folder

    names = ("target_side", "context", "max_frames", "photo_side", "cutout_side", "quality")
    config = PoolFolderConfig(**{name: getattr(args, name) for name in names})
    report = write_pool_folder(args.root, args.out, config, os.cpu_count() or 1)
    print_table(
        [
            ("sequences", f"{report.clips:,}"),
            ("frames", f"{report.frames:,}; {report.frames_left_out:,} left out"),
            ("photographs", f"{report.photos:,}, {report.cutouts:,} cut-outs"),
            ("size", f"{report.nbytes / 2**20:,.1f} MiB in {report.files} files"),
            ("use it", f'data.root = "{args.out}"'),
        ]
    )
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Draws training samples."""
    from mixformer_jax.config_files import default_settings, load_config
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


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="its folder, in the published layout")
    parser.add_argument(
        "--dataset", required=True, metavar="D", help="how to read it: got10k, lasot, coco, folder, ..."
    )
    parser.add_argument("--split", metavar="S", help="a published part of it, such as vottrain, train or test")
    parser.add_argument("--list", type=Path, dest="list_file", metavar="FILE", help="sequences to take, one a line")
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--faults", type=positive, default=SHOWN_FAULTS, metavar="N", help="to print (default: %(default)s)"
    )


def _print_faults(faults: Sequence[str], most: int) -> None:
    from mixformer_jax.evaluation.results import printable

    for fault in faults[:most]:
        print(printable(fault), file=sys.stderr)
    if len(faults) > most:
        print(f"... and {len(faults) - most:,} more; --faults {len(faults)} prints all", file=sys.stderr)
