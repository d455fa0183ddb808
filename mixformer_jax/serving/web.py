"""The web server around the page: bounded, quiet, and ended by whoever started it."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import uvicorn
import websockets  # noqa: F401 (uvicorn speaks WebSocket by it)
from starlette.applications import Starlette

MOST_CONNECTIONS = 128
MOST_MESSAGE = 8 * 2**20  # a picture of a camera
_ASKING_S = 0.1


class _Server(uvicorn.Server):
    """Leaves signals to the program."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A socket that may be listened on; OSError where the address is no one's, or taken."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it lets two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def serve(app: Starlette, bound: socket.socket, is_asked_to_stop: Callable[[], bool]) -> None:
    """Serves until it is asked to stop."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        ws_max_size=MOST_MESSAGE,
        ws_max_queue=4,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=2,
    )
    asyncio.run(_serve(_Server(config), bound, is_asked_to_stop))


async def _serve(server: _Server, bound: socket.socket, is_asked_to_stop: Callable[[], bool]) -> None:
    async def stop_when_asked() -> None:
        while not is_asked_to_stop():
            await asyncio.sleep(_ASKING_S)
        server.should_exit = True

    asking = asyncio.create_task(stop_when_asked())
    await server.serve(sockets=[bound])
    asking.cancel()
