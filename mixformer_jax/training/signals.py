"""SIGTERM and Ctrl-C in a run: finish the step, save, then go as the signal says."""

import signal
import threading
from types import FrameType, TracebackType


class StopSignals:
    """While open, the first SIGTERM or SIGINT is only remembered; a second one acts at once.

    In a distributed run SIGTERM is left to JAX's preemption service, by which all processes agree on a last step.
    Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    def __init__(self, distributed: bool = False) -> None:
        self.received: signal.Signals | None = None
        self._numbers = (signal.SIGINT,) if distributed else (signal.SIGTERM, signal.SIGINT)
        self._before: dict[int, object] = {}

    def deliver(self) -> None:
        """Lets a remembered signal act: by the handler that was there before, or by the default."""
        number = self.received or signal.SIGTERM
        self._restore()
        handler = signal.getsignal(number)
        if callable(handler):
            handler(number, None)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in self._numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
