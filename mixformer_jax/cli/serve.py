"""`mixformer serve`: a page in the browser on which targets are marked and followed live."""

import argparse
import asyncio
import contextlib
import ipaddress
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from mixformer_jax.cli.console import Parser, UsageError, add_model_arguments, load_model, positive
from mixformer_jax.config_files import TRACKER_PREFIX
from mixformer_jax.signals import current, saving

ABOUT = """The page opens a video (an upload, the browser's camera, one of --folder, or an address); draw boxes on any frame,
and the targets are followed. On other addresses than this computer's own a token is needed, which is printed."""
# How long sessions have to end.
STOP_S = 8.0
ASKING_S = 0.1
MOST_CONNECTIONS = 128
MOST_MESSAGE = 8 * 2**20  # a picture of a camera


def add_serve(parser: Parser) -> None:
    """The arguments of `mixformer serve`."""
    parser.describe(run_serve, "--folder videos", "--host 0.0.0.0 --port 8000", overrides=TRACKER_PREFIX, about=ABOUT)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: any free one (default: %(default)s)")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="videos in it can be opened on the page")
    addresses_help = "let the page open https://... and rtsp://... where --host is not this computer alone"
    parser.add_argument("--addresses", action="store_true", help=addresses_help)
    parser.add_argument("--sessions", type=positive, default=8, metavar="N", help="at once (default: %(default)s)")
    upload_help = "of an upload, and of the frames kept of a camera (default: %(default)s)"
    parser.add_argument("--megabytes", type=positive, default=1024, metavar="N", help=upload_help)
    add_model_arguments(parser)


def run_serve(args: argparse.Namespace) -> int:
    """Serves until it is interrupted."""
    import uvicorn  # the extra `serve`

    from mixformer_jax.serving.app import Limits, Server

    class Quiet(uvicorn.Server):
        """Leaves signals to the command."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    if args.folder is not None and not args.folder.is_dir():
        raise UsageError(f"--folder {args.folder}: is no folder")
    if not 0 <= args.port < 65536:
        raise UsageError(f"--port {args.port}: expected a number from 0 to 65535")
    with _listening(args.host, args.port) as listening:
        address, port = listening.getsockname()[:2]
        is_own = ipaddress.ip_address(address).is_loopback
        token = None if is_own else secrets.token_urlsafe(16)
        server = Server(
            load_model(args),
            args.folder,
            hosts=(args.host.lower(), "localhost", "127.0.0.1", "::1") if is_own else None,
            token=token,
            with_addresses=is_own or args.addresses,
            limits=Limits(args.sessions, args.megabytes * 2**20),
        )
        web = Quiet(
            uvicorn.Config(
                server.app,
                access_log=False,
                log_level="warning",
                server_header=False,
                limit_concurrency=MOST_CONNECTIONS,
                ws_max_size=MOST_MESSAGE,
                ws_max_queue=4,
                ws_per_message_deflate=False,
                timeout_graceful_shutdown=2,
            )
        )
        name = f"[{address}]" if ":" in address else address
        print(f"open http://{name}:{port}/{'' if token is None else f'?token={token}'}", flush=True)
        with saving(STOP_S, lambda: server.close() or ""):
            asyncio.run(_serve(web, listening))
    if (signals := current()) is not None:
        signals.check()
    return 0


async def _serve(web: "uvicorn.Server", listening: socket.socket) -> None:  # type: ignore[name-defined]  # noqa: F821
    async def stop_when_asked() -> None:
        while not ((signals := current()) is not None and signals.asked()):
            await asyncio.sleep(ASKING_S)
        web.should_exit = True

    asking = asyncio.create_task(stop_when_asked())
    await web.serve(sockets=[listening])
    asking.cancel()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error.strerror}; see --host and --port") from error
    return listening
