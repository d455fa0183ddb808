"""Which devices the processes of a distributed run use, where a scheduler has put several of them on one node."""

import re
import socket
from collections.abc import Mapping, Sequence

import jax

from mixformer_jax.models.config import ConfigError


def local_device_ids(environ: Mapping[str, str]) -> list[int] | None:
    """The GPUs of this node that this process uses, for `jax.distributed.initialize`.

    Left to itself JAX gives every process under Slurm and Open MPI the one whose number is that of the process on the
    node: with one process a node, one GPU of all. Here the processes of a node share them equally.

    Args:
        environ: the variables of the scheduler, and CUDA_VISIBLE_DEVICES.

    Returns:
        Indices into what this process sees; empty: all of it; None: as JAX does, where nothing is known.

    Raises:
        ConfigError: GPUs that do not divide among the processes of the node.
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


def process_words(environ: Mapping[str, str]) -> str:
    """What the others must know of this process: host, devices in use, and the GPUs that it sees."""
    devices = jax.local_devices()
    visible = _visible(environ) if devices[0].platform == "gpu" else []
    return "\t".join((socket.gethostname(), str(len(devices)), devices[0].device_kind, ",".join(visible)))


def check_devices(processes: Sequence[str]) -> list[str]:
    """The table of processes, a line each.

    Args:
        processes: what `process_words` says of each, in order.

    Raises:
        ConfigError: the processes of a host use fewer GPUs than they see; names the host.
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
