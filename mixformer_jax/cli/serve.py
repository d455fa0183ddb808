"""`mixformer serve`: a page in the browser on which targets are marked and followed live."""

import argparse
import contextlib
import ipaddress
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from mixformer_jax.cli.console import Parser, UsageError, add_model_arguments, load_model, positive
from mixformer_jax.config_files import TRACKER_PREFIX
from mixformer_jax.signals import check, current, saving

ABOUT = """The page opens a video (an upload, the browser's camera, one of --folder, or an address); draw boxes on any
frame, and the targets are followed. On other addresses than this computer's own a token is needed, which is printed."""
OWN_NAMES = ("localhost", "127.0.0.1", "::1")
# How long sessions have to end.
STOP_S = 8.0


def add_serve(parser: Parser) -> None:
    parser.describe(run_serve, "--folder videos", "--host 0.0.0.0 --port 8000", overrides=TRACKER_PREFIX, about=ABOUT)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: any free one (default: %(default)s)")
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="videos and folders of images in it can be opened on the page"
    )
    folder.add_argument(
        "--demo", action="store_true", help="so can the clip of mixformer demo, which is rendered first"
    )
    addresses_help = "let the page open https://... and rtsp://... where --host is not this computer alone"
    parser.add_argument("--addresses", action="store_true", help=addresses_help)
    parser.add_argument("--sessions", type=positive, default=8, metavar="N", help="at once (default: %(default)s)")
    upload_help = "of an upload, and of the frames kept of a camera (default: %(default)s)"
    parser.add_argument("--megabytes", type=positive, default=1024, metavar="N", help=upload_help)
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
        server = Server(
            load_model(args),
            folder,
            hosts=(args.host.lower(), *OWN_NAMES) if is_own else None,
            token=token,
            with_addresses=is_own or args.addresses,
            limits=Limits(args.sessions, args.megabytes * 2**20),
        )
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
    from mixformer_jax.cli.demo import FPS, HEIGHT, WIDTH, render_demo_clip
    from mixformer_jax.media.video import VideoWriter

    with tempfile.TemporaryDirectory(prefix="mixformer_demo_") as folder:
        with VideoWriter(Path(folder) / "cat.mp4", FPS, (HEIGHT, WIDTH)) as writer:
            for frame in tqdm(render_demo_clip(), desc="rendering a clip", disable=None, leave=False):
                writer.write(frame)
        yield Path(folder)
