"""Who tracks the sequences of a run: this process, or several, each with its own tracker.

The parent hands out sequences and alone writes results, so a crash leaves no half result. Processes are spawned: a fork
would inherit the locks of JAX's threads. Each has a pipe to the parent and exits when the pipe closes.
"""

import logging
import multiprocessing
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType

import cv2
import jax

from mixformer_jax.evaluation.lane_loop import Clock, Job, LaneLoop, Outcome, explain, longest_first
from mixformer_jax.evaluation.trackers import OpenedTracker
from mixformer_jax.signals import blocked, check

logger = logging.getLogger(__name__)

OpenTracker = Callable[[], OpenedTracker]
# Seconds between a worker's reports of its frames, and between the parent's checks for signals.
REPORT_S = 0.1
ASKING_S = 0.2


class Alone:
    """The crew that is this process."""

    num_workers = 1

    def __init__(self, opened: OpenedTracker) -> None:
        self._opened = opened

    def track(self, jobs: Sequence[Job], clock: Clock, on_frames: Callable[[int], object]) -> Iterator[Outcome]:
        """Yields one outcome a job in order of completion, and adds every loop's clock to `clock`."""
        if not jobs:
            return
        self._opened.warm_up()
        waiting = iter(jobs if self._opened.lanes.num_lanes == 1 else longest_first(jobs))
        loop = LaneLoop(self._opened.lanes, lambda: next(waiting, None), on_frames)
        yield from loop.outcomes()
        clock.add(loop.clock)


# What a worker tells its parent, a word and what belongs to it:
#     opened  NAME SETTINGS ABOUT, of the tracker; or refused REASON: it cannot be opened
#     warm    it has compiled its programs
#     wants   it has a free lane, and waits for a job, or None
#     tracked FRAMES since the last message
#     outcome OUTCOME
#     ended   CLOCK: there was no job left; or broken REASON TRACE, by an unexpected error


class _Worker:
    """A process and the parent's end of its pipe."""

    def __init__(self, open_tracker: OpenTracker, index: int, num_workers: int, cache: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_work, args=(theirs, open_tracker, index, num_workers, cache), name=f"tracker-{index}", daemon=True
        )
        with blocked(signal.SIGINT):  # Ctrl-C goes to the whole group; the parent decides what becomes of it
            self.process.start()
        theirs.close()  # so that the pipe closes with the process
        self.jobs: dict[int, Job] = {}

    def end(self) -> str:
        """Waits for the process to go, and says how it went."""
        self.process.join()
        code = self.process.exitcode or 0
        return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"


class Workers:
    """A crew of processes, as a context manager; they end with it.

    `open_tracker` must pickle and is called in each process; `name`, `settings` and `about` are those of its tracker.
    The first process compiles; the others start then, and take the programs from JAX's cache on disk: that of
    `jax_compilation_cache_dir`, or a temporary one. On Linux each has its share of this process's cores. Raises
    ValueError for less than one worker, and for what `open_tracker` refuses.
    """

    def __init__(self, open_tracker: OpenTracker, num_workers: int) -> None:
        if num_workers < 1:
            raise ValueError(f"{num_workers} workers; expected at least 1")
        self.num_workers = num_workers
        self._open_tracker = open_tracker
        self._stack = ExitStack()
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Workers":
        with ExitStack() as stack:
            cache = jax.config.values["jax_compilation_cache_dir"]
            self._cache = cache or stack.enter_context(tempfile.TemporaryDirectory(prefix="compiled-"))
            stack.callback(self._terminate)
            worker = self._start()
            try:
                while not worker.connection.poll(ASKING_S):
                    check()
                message = worker.connection.recv()
            except EOFError:
                raise ValueError(f"the process that opens the tracker ended with {worker.end()}") from None
            match message:
                case ("refused", reason):
                    raise ValueError(reason)
                case ("broken", _, trace):
                    raise RuntimeError(f"the process that opens the tracker failed:\n{trace}")
            _, self.name, self.settings, self.about = message
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def track(self, jobs: Sequence[Job], clock: Clock, on_frames: Callable[[int], object]) -> Iterator[Outcome]:
        """As `Alone.track`. If a process dies, its sequences fail; if all die, the waiting ones fail too."""
        if not jobs:
            return
        waiting = deque(longest_first(jobs))
        live = list(self._workers)
        reason = trace = ""
        while live:
            check()
            for connection in wait([worker.connection for worker in live], ASKING_S):
                worker = next(worker for worker in live if worker.connection is connection)
                try:
                    message = worker.connection.recv()
                    if message == ("wants",):
                        job = waiting.popleft() if waiting else None
                        # Noted before it is sent: the process may die of it.
                        if job is not None:
                            worker.jobs[job.number] = job
                        worker.connection.send(job)
                except (EOFError, OSError):
                    live.remove(worker)
                    reason, trace = f"the process that tracked it ended with {worker.end()}", ""
                    yield from (Outcome(number, None, reason) for number in worker.jobs)
                    continue
                match message:
                    case ("warm",) if len(self._workers) == 1:
                        for _ in range(min(self.num_workers, len(jobs)) - 1):
                            live.append(self._start())
                    case ("tracked", frames):
                        on_frames(frames)
                    case ("outcome", outcome):
                        del worker.jobs[outcome.number]
                        yield outcome
                    case ("ended", spent):
                        clock.add(spent)
                        live.remove(worker)
                    case ("refused", refusal):
                        live.remove(worker)
                        reason, trace = f"the tracker cannot be opened: {refusal}", ""
                        logger.error("process %s: %s", worker.process.name, reason)
                    case ("broken", cause, trace):
                        live.remove(worker)
                        reason = f"the process that tracked it failed: {cause}"
                        logger.error("process %s failed: %s", worker.process.name, cause)
                        yield from (Outcome(number, None, reason, trace) for number in worker.jobs)
        for job in waiting:
            yield Outcome(job.number, None, f"not tracked: {reason}", trace)
            trace = ""  # once is enough

    def _start(self) -> _Worker:
        worker = _Worker(self._open_tracker, len(self._workers), self.num_workers, self._cache)
        self._workers.append(worker)
        return worker

    def _terminate(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()


Crew = Alone | Workers


def _work(connection: Connection, open_tracker: OpenTracker, index: int, num_workers: int, cache: str) -> None:
    _take_share(index, num_workers)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    try:
        try:
            opened = open_tracker()
        except (ValueError, OSError) as error:
            connection.send(("refused", str(error)))
            return
        connection.send(("opened", opened.name, opened.settings, dict(opened.about)))
        opened.warm_up()
        connection.send(("warm",))
        _track(connection, opened)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    except Exception as error:  # noqa: BLE001  the parent reports it
        connection.send(("broken", *explain(error)))


def _track(connection: Connection, opened: OpenedTracker) -> None:
    """Tracks what the parent hands out, and reports to it."""
    unreported, reported_at = 0, time.perf_counter()

    def report() -> None:
        nonlocal unreported, reported_at
        connection.send(("tracked", unreported))
        unreported, reported_at = 0, time.perf_counter()

    def count(frames: int) -> None:
        nonlocal unreported
        unreported += frames
        if time.perf_counter() - reported_at >= REPORT_S:
            report()

    def next_job() -> Job | None:
        connection.send(("wants",))
        job: Job | None = connection.recv()
        return job

    loop = LaneLoop(opened.lanes, next_job, count)
    for outcome in loop.outcomes():
        report()
        connection.send(("outcome", outcome))
    connection.send(("ended", loop.clock))


def _take_share(index: int, num_workers: int) -> None:
    """Limits a worker to its share of the machine, before JAX starts one thread a core."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / num_workers:.2f}")
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = cores[index * len(cores) // num_workers : (index + 1) * len(cores) // num_workers]
        if share:
            os.sched_setaffinity(0, share)
            cv2.setNumThreads(len(share))
