"""Ctrl-C and SIGTERM: a program notes them, and ends where nothing is lost. Imports nothing but the standard library.

No exception is raised from a handler: JAX swallows one that arrives in its callbacks, or crashes. A thread hears of
signals even while the main thread compiles or computes:

- outside `StopSignals.saving` there is nothing to save, and the process ends at once;
- inside, a loop that asks between two steps (`check`, `asked`) saves and leaves in its own time; where none has asked
  in the given seconds, `finish` is called, and the process ends;
- a second signal within `SAME_S` seconds is the first one again (GNU `timeout` sends it to the process and to its
  group); a later one ends the process at once. Files are whole even then.

Programs open `StopSignals(...)` before they import JAX. Library functions ask `current`.
"""

import atexit
import contextlib
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import NoReturn

NUMBERS = (signal.SIGINT, signal.SIGTERM)
SAME_S = 2.0
_ASKING_S = 0.05  # how often the thread looks whether the loop has asked


class Stopped(KeyboardInterrupt):
    """A signal, raised by the loop that asked for it; `status` is the exit status of a program that it ended."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number, self.status = signal.Signals(number), 128 + number
        self.word = "terminated" if number == signal.SIGTERM else "interrupted"


class StopSignals:
    """While open, signals are noted. A context manager; the handlers from before come back with its end.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """

    def __init__(self, program: str | None = None, advice: str = "") -> None:
        """For a program that may end at once, and whose `advice` belongs to its last words; both may change later.

        Without a program this is a library's call, which ends nothing but itself: a signal that nobody asked for, and a
        second one, act as before.
        """
        self.program, self.advice = program, advice
        self._received: int | None = None
        self._since = 0.0
        self._asked = False
        self._saving: list[tuple[float, Callable[[], str]]] = [(0.0, str)]
        self._before: dict[int, object] = {}

    def asked(self) -> int:
        """The signal, 0 where there was none. Who asks has the time to end well."""
        self._asked = self._received is not None
        return self._received or 0

    def check(self) -> None:
        """Raises `Stopped` where there was a signal."""
        if number := self.asked():
            raise Stopped(number)

    @contextlib.contextmanager
    def saving(self, seconds: float = math.inf, finish: Callable[[], str] = str) -> Iterator[None]:
        """There is something to save: a signal waits so many seconds for the loop, which may be compiling a step.

        Then `finish` is called, in another thread; it returns what to tell the user.
        """
        self._saving.append((seconds, finish))
        try:
            yield
        finally:
            self._saving.pop()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            if self.program is not None:
                self._writing, heard = socket.socketpair()
                self._writing.setblocking(False)
                self._woken = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
                threading.Thread(target=self._listen, args=(heard,), name="signals", daemon=True).start()
            self._before = {number: signal.signal(number, self._handle) for number in NUMBERS}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._before:
            self._restore()
            if self.program is not None:
                signal.set_wakeup_fd(self._woken)
                self._writing.close()
                # All is done and said: what Python and JAX have left to take down needs no second end.
                atexit.register(_ignore)
        if isinstance(error, Stopped):
            signal.raise_signal(error.number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Python calls it in the main thread, between two instructions: of a program, long after the thread knows."""
        if self._note(number) and self.program is None:
            self._restore()
            signal.raise_signal(number)

    def _note(self, number: int) -> bool:
        """Keeps the first signal; true for one that is not its echo."""
        now = time.monotonic()
        if self._received is None:
            self._since, self._received = now, number
        return now - self._since > SAME_S

    def _listen(self, heard: socket.socket) -> None:
        with heard:
            while True:
                waits = self._received is not None and not self._asked
                if select.select([heard], [], [], _ASKING_S if waits else None)[0]:
                    numbers = heard.recv(64)
                    if not numbers:
                        return
                    if any(self._note(number) for number in numbers if number in NUMBERS):
                        self._leave(str)
                seconds, finish = self._saving[-1]
                if self._received is not None and not self._asked and time.monotonic() - self._since >= seconds:
                    self._leave(finish)

    def _leave(self, finish: Callable[[], str]) -> NoReturn:
        stopped, told = Stopped(self._received or signal.SIGTERM), ""
        try:
            told = finish()
            if (processes := sys.modules.get("multiprocessing")) is not None:
                for worker in processes.active_children():
                    worker.kill()  # they would complain that their parent is gone
        finally:
            words = "; ".join(filter(None, (f"{self.program}: {stopped.word}", told, self.advice)))
            # Not through `sys.stderr`, whose lock the main thread may hold. A bar or ^C may stand on the line.
            os.write(2, f"{chr(10) if os.isatty(2) else ''}{words}\n".encode())
            os._exit(stopped.status)


def _ignore() -> None:
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def current() -> StopSignals | None:
    """The innermost that is open; None where signals act as Python has them."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return owner if isinstance(owner, StopSignals) else None


def check() -> None:
    """Raises `Stopped` where a program that listens has got a signal."""
    if (signals := current()) is not None:
        signals.check()


def saving(seconds: float = math.inf, finish: Callable[[], str] = str) -> AbstractContextManager[None]:
    """See `StopSignals.saving`; nothing where no program listens."""
    signals = current()
    return contextlib.nullcontext() if signals is None else signals.saving(seconds, finish)


def listening() -> AbstractContextManager[StopSignals]:
    """The program's own `StopSignals`, or those of this call alone."""
    signals = current()
    return StopSignals() if signals is None else contextlib.nullcontext(signals)


@contextlib.contextmanager
def blocked(*numbers: int) -> Iterator[None]:
    """Processes started inside never get these signals (none given: all of `NUMBERS`), which terminals and `timeout`
    send to the whole group: the parent decides.
    """
    from multiprocessing import resource_tracker

    # Python's tracker of shared memory unblocks signals as it starts, which is with the first process otherwise. What a
    # process that ends at once has left it clears, and need not say so.
    sys.warnoptions.append(quiet := "ignore:resource_tracker:UserWarning")
    resource_tracker.ensure_running()
    sys.warnoptions.remove(quiet)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers or NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
