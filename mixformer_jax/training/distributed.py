"""Several processes that train one model: their devices, how they find each other and agree, and how they end. Barriers
and a store of words by name come from JAX's coordination service, which process 0 holds."""

import contextlib
import ctypes
import functools
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.distributed import global_state  # its client has no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixformer_jax.models.config import ConfigError
from mixformer_jax.signals import Stopped
from mixformer_jax.training.experiment import RunConfig
from mixformer_jax.training.sharding import place

# After another's failure a process waits so long for its own: all may have met the same, and have their say. One that
# writes the log's first line imports PyTorch meanwhile, where that is installed, for 3 to 10 seconds.
OWN_FAILURE_S = 15
_FAILURE_MS = 2000 * OWN_FAILURE_S  # and so long for the others to end, too
_BEAT_MS = 1000
_FAILED, _ALIVE, _END, _PROCESSES, _PORT = (f"mixformer/{x}" for x in ("failed", "alive", "end", "processes", "port"))


class LostPeerError(RuntimeError):
    """Another process of the run is gone, and nothing can be computed without it."""


def connect(settings: RunConfig) -> None:
    """Joins the other processes of a distributed run; must come before JAX looks for devices.

    JAX's service aborts a process that has not heard of another for twice `train.peer_timeout_s`: only where
    `PeerWatch` could not tell. Its preemption service stays off: it takes SIGTERM from `signals`, and knows no SIGINT.

    Raises ConfigError: the other processes cannot be found, or not reached.
    """
    if not settings.distributed:
        return
    count, index = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    timeout_s = settings.peer_timeout_s
    jax.config.update("jax_enable_preemption_service", False)
    # JAX itself aborts where the others do not come.
    late = threading.Timer(timeout_s, _end, [str(_not_joined(f"{timeout_s} s are over"))])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if index is None else int(index),
            local_device_ids=local_device_ids(os.environ),
            initialization_timeout=2 * timeout_s,
            heartbeat_timeout_seconds=2 * timeout_s,
            shutdown_timeout_seconds=timeout_s,
        )
    except (ValueError, RuntimeError) as error:
        if global_state.client is not None:
            _end(str(_not_joined(str(error))))  # a regular exit would wait for them, and abort
        raise _not_joined(str(error)) from error
    finally:
        late.cancel()


def _not_joined(reason: str) -> ConfigError:
    return ConfigError(
        f"train.distributed: cannot join the other processes: {reason}. On TPU pods, Slurm and Open MPI they are found "
        "by themselves; elsewhere set JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID"
    )


def process_table(settings: RunConfig) -> list[str]:
    """The processes of a distributed run and their devices, a line each; ConfigError: see `check_devices`."""
    client: Any = global_state.client
    if client is None:
        return []
    devices = jax.local_devices()
    visible = _visible(os.environ) if devices[0].platform == "gpu" else []
    words = "\t".join((socket.gethostname(), str(len(devices)), devices[0].device_kind, ",".join(visible)))
    client.key_value_set(f"{_PROCESSES}/{jax.process_index():06}", words)
    client.wait_at_barrier(_PROCESSES, 1000 * settings.peer_timeout_s)
    return check_devices([words for _, words in sorted(client.key_value_dir_get(_PROCESSES))])


def is_first() -> bool:
    """Whether this process writes what one alone must write."""
    return jax.process_index() == 0


def all_agree(mine: bool) -> bool:
    """Whether every process says yes; all of them must ask."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(mine))))


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(tree: Any) -> Any:
    """Arrays of a mesh as whole numpy arrays; all processes must ask."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def largest(mesh: Mesh) -> Callable[[int], jax.Array | int]:
    """The largest of the numbers that the processes give, as an array to be read later; all of them must ask."""
    if jax.process_count() == 1:
        return lambda mine: mine
    split, whole = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), NamedSharding(mesh, PartitionSpec())
    take = jax.jit(jnp.max, out_shardings=whole)
    return lambda mine: take(place(np.full(mesh.size, mine, np.int32), split))


class PeerWatch:
    """While open, the processes meet every second, and end together. In a run of one process it does nothing.

    A process that is stuck in a computation with a lost one cannot be interrupted by an exception, so a thread meets
    the others. When one has not come for too long, or has failed, this process ends with a message and exit status 2.
    A process that fails itself tells the others and waits for them, then its error goes its way.
    """

    def __init__(self, timeout_s: int) -> None:
        """`timeout_s` is how long a process may be silent."""
        self._timeout_ms = 1000 * timeout_s
        # Not `jax.process_count()`, which looks for devices, and waits for the others' first.
        self._client: Any = global_state.client if global_state.num_processes > 1 else None
        self._ended = threading.Event()
        self._leaving = threading.Lock()

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """What goes wrong inside is told to the others, before anything that is open closes and waits for them.

        Raises LostPeerError where computing failed because one of them is gone.
        """
        try:
            yield
        except (LostPeerError, Stopped):
            raise  # known to all, or to be found out by each
        except BaseException as error:
            if self._client is None:
                raise
            if _is_communication(error):
                raise _lost_peer(str(error).splitlines()[0]) from error
            self._ended.set()
            self._tell(str(error).strip() or type(error).__name__)
            raise

    def stop(self) -> str:
        """Before the process ends by a signal, with nothing to save: so do the others."""
        if self._client is not None:
            self._ended.set()
            self._tell("it was told to stop before it had trained a step")
            self._part(_FAILURE_MS)
        return ""

    def __enter__(self) -> "PeerWatch":
        if self._client is not None:
            _put_off_aborts()
            for task in (self._meet, self._listen):
                threading.Thread(target=task, name="peer watch", daemon=True).start()
            if global_state.process_id == 0:
                # Connections wait to be accepted for as long as this process lives.
                self._door = socket.create_server(("", 0), backlog=global_state.num_processes)
                self._client.key_value_set(_PORT, str(self._door.getsockname()[1]))
            else:
                threading.Thread(target=self._follow_first, name="peer watch", daemon=True).start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._client is None:
            return
        if isinstance(error, LostPeerError):
            self._leave(str(error))
        if not self._part(self._timeout_ms if error is None or isinstance(error, Stopped) else _FAILURE_MS):
            self._leave(str(error or _lost_peer("it did not come to the end")))

    def _meet(self) -> None:
        """Meets the others every second, to the end of all: they wait for this process, too."""
        try:
            while True:
                time.sleep(_BEAT_MS / 1000)
                self._client.wait_at_barrier(_ALIVE, self._timeout_ms)
        except jax.errors.JaxRuntimeError as error:
            if not self._ended.is_set():
                self._leave(str(_lost_peer(str(error).splitlines()[0])))

    def _listen(self) -> None:
        """Hears of a failure. Not between two meetings: who has heard of it would not come to the next one."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service is gone: `_meet` says so
            while (failure := self._failure()) is None:
                pass
            if not self._ended.wait(OWN_FAILURE_S):
                self._leave(f"{_this_process()} ends, for {failure}", True)

    def _follow_first(self) -> None:
        """Notices that process 0 is gone by a connection of its own: the thread that hears the service's answers is the
        one that aborts."""
        with contextlib.suppress(OSError, jax.errors.JaxRuntimeError):
            host = str(global_state.coordinator_address).rpartition(":")[0].strip("[]")
            port = self._client.blocking_key_value_get(_PORT, self._timeout_ms)
            with socket.create_connection((host, int(port))) as line, contextlib.suppress(ConnectionError):
                line.recv(1)
            if not self._ended.is_set():
                self._leave(str(_lost_peer("process 0 has closed its connection")))

    def _failure(self) -> str | None:
        """What another process has told, as soon as it does; None after a while."""
        try:
            return str(self._client.blocking_key_value_get(_FAILED, _BEAT_MS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise

    def _tell(self, reason: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was first
            self._client.key_value_set(_FAILED, f"process {global_state.process_id} has failed: {reason}")

    def _part(self, timeout_ms: int) -> bool:
        """Leaves the service together with the others; false where they do not come."""
        try:
            self._client.wait_at_barrier(_END, timeout_ms)
        except jax.errors.JaxRuntimeError:
            return False
        self._ended.set()
        jax.distributed.shutdown()  # waits for all: JAX aborts whom process 0 leaves behind
        return True

    def _leave(self, message: str, together: bool = False) -> NoReturn:
        self._leaving.acquire()  # the thread or the loop, whoever comes first
        _end(message, functools.partial(self._part, _FAILURE_MS) if together else None)


def _end(message: str, last: Callable[[], object] | None = None) -> NoReturn:
    print(f"mixformer: error: {message}", file=sys.stderr, flush=True)
    if last is not None:
        last()
    os._exit(2)


def _put_off_aborts() -> None:
    """JAX's service aborts its clients, that of process 0 too, where a process is gone; they shall first say what that
    means.

    The handler of SIGABRT is the C library's `sleep`: called with the signal's number, it puts the abort off by so many
    seconds, needs none of Python's locks, and goes on to abort where nobody has ended the process by then.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def _is_communication(error: BaseException) -> bool:
    """Whether computing together failed: JAX's errors, but for want of memory; over gloo also plain ones."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" not in str(error)
    return isinstance(error, ValueError) and "Gloo" in str(error)


def _this_process() -> str:
    return f"process {global_state.process_id} of {global_state.num_processes}"


def _lost_peer(reason: str) -> LostPeerError:
    return LostPeerError(
        f"{_this_process()}: computing with the other processes failed ({reason}): one of them is gone. Start all of "
        "them again with the same command: the run goes on from its last checkpoint"
    )


def local_device_ids(environ: Mapping[str, str]) -> list[int] | None:
    """The GPUs of this node that this process uses, for `jax.distributed.initialize`, by the scheduler's variables.

    Left to itself JAX gives every process under Slurm and Open MPI the one whose number is that of the process on the
    node: with one process a node, one GPU of all. Here the processes of a node share them equally.

    Returns indices into what this process sees; empty: all of it; None: as JAX does, where nothing is known.

    Raises ConfigError: GPUs that do not divide among the processes of the node.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    tasks = _tasks_here(environ)
    if tasks == 1:
        return []
    visible = _visible(environ)
    if tasks is None or not visible:
        return None
    # A scheduler that binds GPUs to tasks leaves each but its own.
    per_task, on_node = (_number(environ.get(f"SLURM_GPUS_{name}", "")) for name in ("PER_TASK", "ON_NODE"))
    if len(visible) == per_task or len(visible) < (on_node or tasks):
        return []
    if len(visible) % tasks:
        raise ConfigError(
            f"train.distributed: {len(visible)} GPUs (CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']}) do not "
            f"divide among the {tasks} processes on this node; start one process a node, or one a GPU"
        )
    share = len(visible) // tasks
    first = share * int(environ.get("SLURM_LOCALID", environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")))
    return list(range(first, first + share))


def check_devices(processes: Sequence[str]) -> list[str]:
    """The table of processes, a line each, out of the host, number and kind of devices and GPUs in sight of each.

    Raises ConfigError, which names the host, where the processes of one use fewer GPUs than they see.
    """
    lines, used, seen = [], dict[str, int](), dict[str, set[str]]()
    for index, words in enumerate(processes):
        host, count, kind, visible = words.split("\t")
        lines.append(f"process {index} on {host}: {count} x {kind}")
        used[host] = used.get(host, 0) + int(count)
        seen.setdefault(host, set()).update(filter(None, visible.split(",")))
    for host, gpus in seen.items():
        if used[host] < len(gpus):
            listed = "\n  ".join(lines)
            raise ConfigError(
                f"train.distributed: {host} has {len(gpus)} GPUs in sight and uses {used[host]} of them:\n  {listed}\n"
                "Start one process a node or one a GPU, or name the GPUs to use in CUDA_VISIBLE_DEVICES"
            )
    return lines


def _tasks_here(environ: Mapping[str, str]) -> int | None:
    """How many processes of the job run on this node; None where no scheduler says."""
    # 2(x3),1: two on each of three nodes, one on the fourth.
    counts: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", "")).split(","):
        if found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part):
            counts += [int(found[1])] * int(found[2] or 1)
    node = _number(environ.get("SLURM_NODEID", "0")) or 0
    if node < len(counts):
        return counts[node]
    return _number(environ.get("SLURM_NTASKS_PER_NODE", environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")))


def _visible(environ: Mapping[str, str]) -> list[str]:
    """The GPUs that CUDA shows to this process; empty where nothing limits them."""
    return [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu not in ("", "-1", "NoDevFiles")]


def _number(text: str) -> int | None:
    found = re.search(r"\d+$", text)  # of "gpu:a100:4", too
    return int(found[0]) if found else None
