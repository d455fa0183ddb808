"""`mixformer attention`, `demo`, `failures`, `bench`, `doctor`, `serve`: a tracker tried out, measured, looked into.

Their arguments and what they print. What they do is imported when they run, and JAX with it: `--help` needs neither.
"""

import argparse
import contextlib
import datetime
import ipaddress
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mixformer_jax.cli.console import (
    Parser,
    UsageError,
    add_device_argument,
    add_model_arguments,
    for_the_user,
    load_model,
    positive,
    print_table,
    read_box,
    read_size,
)
from mixformer_jax.cli.track import SOURCE, report_recording
from mixformer_jax.config_files import TRACKER_PREFIX
from mixformer_jax.extras import EXTRAS
from mixformer_jax.signals import check, current, saving
from mixformer_jax.text_tables import append_rows, markdown

FAILURES = """Tracks the clip of mixformer demo, rendered with several seeds. The sheet has a row for each of the
moments with the lowest overlap: the last frame before it on which the target was boxed (IoU of at least a half), the
moment, and the first frame after it on which it is boxed again, or the clip's end. Green is what was found, yellow
what is true. For every seed the mean overlap is printed, and for trackers with scores the share of frames called lost:
of those that are off (IoU below a tenth, or no target in sight), and of the good ones (above a half)."""


def add_attention(parser: Parser) -> None:
    example = "my.mp4 --box 120,80,60,90 --frame 50 --tracker.num_online_templates=1"
    parser.describe(run_attention, example, overrides=TRACKER_PREFIX)
    parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    parser.add_argument("--box", required=True, metavar="X,Y,W,H", help="the target in the first frame, in pixels")
    frame_help = "tracked up to and shown; counted from 1, so from 2 on"
    parser.add_argument("--frame", required=True, type=positive, metavar="N", help=frame_help)
    out_help = "gets NAME_frameN_attention.png and .npz (default: .)"
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help=out_help)
    blocks_help = "such as B0,B11 (MixViT) or S1-B0,S2-B15 (MixCvT); all; default: at most 9 of the last stage"
    parser.add_argument("--blocks", metavar="B,B", help=blocks_help)
    over_help = "queries: who looks at the target's tokens; keys: where the target's tokens look (default: %(default)s)"
    parser.add_argument("--over", choices=("queries", "keys"), default="queries", help=over_help)
    add_model_arguments(parser, with_sizes=True)


def run_attention(args: argparse.Namespace) -> int:
    from mixformer_jax.cli.attention import attention_sheet
    from mixformer_jax.media.video import open_source

    with open_source(args.source) as source:
        box_xywh = read_box(args.box, source.size)
        tracker = load_model(args)
        blocks = None if args.blocks is None else args.blocks.split(",")
        sheet = attention_sheet(tracker, source, box_xywh, args.frame, args.out, blocks, args.over, progress=True)
    lines = [
        ("model", tracker.config.name + (" with random weights" if args.model else "")),
        ("rows", ", ".join(sheet.maps.weights)),
        ("blocks", ", ".join(sheet.maps.blocks)),
        ("picture", str(sheet.picture)),
        ("arrays", str(sheet.arrays)),
    ]
    if "online" not in sheet.maps.views:
        lines.insert(2, ("", "none to or from online templates: for these, --tracker.num_online_templates=1"))
    print_table(lines)
    return 0


def add_demo(parser: Parser) -> None:
    parser.describe(run_demo, "--out demo_output")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another clip (default: %(default)s)")
    parser.add_argument("--absences", action="store_true", help="the target is out of sight twice")
    add_model_arguments(parser)


def run_demo(args: argparse.Namespace) -> int:
    from mixformer_jax.cli.demo import track_demo

    report = track_demo(load_model(args), args.out, args.seed, args.absences, progress=True)
    more = [
        ("ground truth", str(report.groundtruth)),
        ("picture", f"{report.picture} (first, middle and last frame)"),
        ("mean IoU", f"{report.mean_iou:.3f}"),
    ]
    return report_recording(report.recording, more)


def add_failures(parser: Parser) -> None:
    parser.describe(run_failures, "--out failures.png", about=FAILURES)
    parser.add_argument("--seeds", type=positive, default=6, metavar="N", help="clips: seeds 0 to N - 1 (6)")
    parser.add_argument("--rows", type=positive, default=4, metavar="N", help="moments to show (4)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--absences", action="store_true", help="clips in which the target is out of sight twice")
    add_model_arguments(parser)


def run_failures(args: argparse.Namespace) -> int:
    from mixformer_jax.cli.demo import draw_failures

    draw_failures(load_model(args), args.out, args.seeds, args.rows, args.absences)
    return 0


def add_bench(parser: Parser) -> None:
    parser.describe(run_bench, "--model mixvit_b --frames 50")
    add_model_arguments(parser, with_sizes=True)
    parser.add_argument("--frames", type=positive, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--size", default="640x360", metavar="WxH", help="of the video (default: %(default)s)")
    parser.add_argument("--append", type=Path, metavar="FILE", help="add the row to a Markdown file")


def run_bench(args: argparse.Namespace) -> int:
    from mixformer_jax.cli.bench import COLUMNS, measure
    from mixformer_jax.media.video import prepare_output

    size = read_size(args.size, least=16)
    file = None if args.append is None else prepare_output(args.append)
    timing = measure(load_model(args), args.frames, size, progress=True)
    row = timing.cells(datetime.date.today())
    print(f"{timing.device}; warm-up (compilation and first steps): {timing.warm_up_s:.1f} s, not counted below")
    print(markdown([COLUMNS, row]), end="")
    if file is not None:
        append_rows(file, COLUMNS, [row])
        print(f"added to {file}")
    return 0


def add_doctor(parser: Parser) -> None:
    parser.describe(run_doctor, "--device cpu")
    add_device_argument(parser)


def run_doctor(args: argparse.Namespace) -> int:
    from mixformer_jax.cli.doctor import environment, examine
    from mixformer_jax.tracking.tracker import find_device

    with for_the_user(ValueError):
        device = find_device(args.device)
    print_table(environment(device, EXTRAS))
    print(f"\n{'':7}{'check':46}{'found':12}expected")
    findings = []
    for finding in examine(device):
        print(finding, flush=True)
        findings.append(finding)
    if wrong := sum(not finding.is_right for finding in findings):
        print(f"\n{wrong} of {len(findings)} checks are WRONG: do not trust what is computed here.")
        return 1
    print(f"\nall {len(findings)} checks are right")
    return 0


SERVE = """The page opens a video (an upload, the browser's camera, one of --folder, or an address); draw boxes on any
frame, and the targets are followed. On other addresses than this computer's own a token is needed, which is printed."""
OWN_NAMES = ("localhost", "127.0.0.1", "::1")
STOP_S = 8.0  # how long sessions have to end


def add_serve(parser: Parser) -> None:
    parser.describe(run_serve, "--folder videos", "--host 0.0.0.0 --port 8000", overrides=TRACKER_PREFIX, about=SERVE)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: any free one (default: %(default)s)")
    folder = parser.add_mutually_exclusive_group()
    folder_help = "videos and folders of images in it can be opened on the page"
    folder.add_argument("--folder", type=Path, metavar="FOLDER", help=folder_help)
    demo_help = "so can the clip of mixformer demo, which is rendered first"
    folder.add_argument("--demo", action="store_true", help=demo_help)
    addresses_help = "let the page open https://... and rtsp://... where --host is not this computer alone"
    parser.add_argument("--addresses", action="store_true", help=addresses_help)
    parser.add_argument("--sessions", type=positive, default=8, metavar="N", help="at once (default: %(default)s)")
    megabytes_help = "of an upload, and of the frames kept of a camera (default: %(default)s)"
    parser.add_argument("--megabytes", type=positive, default=1024, metavar="N", help=megabytes_help)
    add_model_arguments(parser)


def run_serve(args: argparse.Namespace) -> int:
    from mixformer_jax.serving.app import Limits, Server
    from mixformer_jax.serving.web import bind, serve

    if args.folder is not None and not args.folder.is_dir():
        raise UsageError(f"--folder {args.folder}: is no folder")
    if not 0 <= args.port < 65536:
        raise UsageError(f"--port {args.port}: expected a number from 0 to 65535")
    try:
        bound = bind(args.host, args.port)
    except OSError as error:
        told = f"cannot listen on {args.host}, port {args.port}: {error.strerror}"
        raise UsageError(f"{told}; choose others by --host and --port") from error
    with bound, contextlib.ExitStack() as stack:
        folder = stack.enter_context(_demo_folder()) if args.demo else args.folder
        address, port = bound.getsockname()[:2]
        is_own = ipaddress.ip_address(address).is_loopback
        token = None if is_own else secrets.token_urlsafe(16)
        hosts = (args.host.lower(), *OWN_NAMES) if is_own else None
        limits = Limits(args.sessions, args.megabytes * 2**20)
        server = Server(load_model(args), folder, hosts, token, is_own or args.addresses, limits)
        is_every = ipaddress.ip_address(address).is_unspecified
        name = socket.gethostname() if is_every else f"[{address}]" if ":" in address else address
        print(f"open http://{name}:{port}/{'' if token is None else f'?token={token}'}", flush=True)

        def finish() -> str:
            server.close()
            return ""

        with saving(STOP_S, finish):
            serve(server.app, bound, lambda: (signals := current()) is not None and bool(signals.asked()))
    check()
    return 0


@contextlib.contextmanager
def _demo_folder() -> Iterator[Path]:
    """A folder for the time being with the demo clip."""
    from tqdm import tqdm

    from mixformer_jax.cli.demo import FPS, HEIGHT, WIDTH, render_demo_clip
    from mixformer_jax.media.video import VideoWriter

    with tempfile.TemporaryDirectory(prefix="mixformer_demo_") as folder:
        with VideoWriter(Path(folder) / "cat.mp4", FPS, (HEIGHT, WIDTH)) as writer:
            for frame in tqdm(render_demo_clip(), desc="rendering a clip", disable=None, leave=False):
                writer.write(frame)
        yield Path(folder)
