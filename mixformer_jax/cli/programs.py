"""Programs that a command runs side by side, each on its share of the processors."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

MIXFORMER = ("-m", "mixformer_jax")


class Programs:
    """Runs programs, several at a time, each on its share of the processors; none outlives this process."""

    def __init__(self, jobs: int, log_folder: Path) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if jobs > len(cores):
            raise ValueError(f"--jobs {jobs}: there are {len(cores)} processors")
        self.jobs = jobs
        self._shares = [cores[i::jobs] for i in range(jobs)]
        self._log_folder = log_folder
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, name: str, *arguments: str | Path) -> None:
        """Runs `python ARGUMENTS`; its output goes to a log file.

        Raises:
            RuntimeError: it failed; the end of the log is in the message.
        """
        log = self._log_folder / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            with self._lock:
                if self._stopped:
                    raise RuntimeError("stopped")
                share = self._shares.pop()
                command = [sys.executable, *map(str, arguments)]
                # A session of its own: Ctrl-C would reach it beside the signal from `closing`, and at a second one a
                # training does not save.
                process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
                os.sched_setaffinity(process.pid, share)
                self._running.add(process)
            try:
                status = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
                    self._shares.append(share)
        if status:
            tail = log.read_bytes()[-1000:].decode(errors="replace")
            raise RuntimeError(f"{name} ended with status {status}; the end of {log}:\n{tail}")

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Whatever happens, no program is left behind; a training saves before it goes."""
        try:
            yield
        finally:
            with self._lock:
                self._stopped = True
                for process in self._running:
                    process.terminate()
