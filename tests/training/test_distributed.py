"""How processes hear of each other, over a service made of threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax

from mixformer_jax.training import distributed


class Service:
    """Barriers and words by name for two clients; `early` is one that never waits for a word."""

    def __init__(self):
        self.words, self.told = {}, threading.Event()
        self.barriers, self.lock = {}, threading.Lock()


class Client:
    def __init__(self, service, early):
        self.service, self.early, self.met = service, early, 0

    def wait_at_barrier(self, name, timeout_ms):
        key = name, self.met
        self.met += 1
        with self.service.lock:
            barrier = self.service.barriers.setdefault(key, threading.Barrier(2))
        try:
            barrier.wait(timeout_ms / 1000)
        except threading.BrokenBarrierError as error:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: barrier") from error

    def blocking_key_value_get(self, name, timeout_ms):
        if self.early and not self.early.is_set():
            self.early.set()
        elif self.service.told.wait(timeout_ms / 1000):
            return self.service.words[name]
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: no such word")

    def key_value_set(self, name, word):
        self.service.words[name] = word
        self.service.told.set()


def test_a_failure_is_heard_by_a_process_that_stopped_listening_a_moment_before(monkeypatch):
    monkeypatch.setattr(distributed, "OWN_FAILURE_S", 0.1)
    monkeypatch.setattr(distributed, "_BEAT_MS", 300)
    monkeypatch.setattr(distributed, "_put_off_aborts", lambda: None)
    monkeypatch.setattr(distributed.global_state, "num_processes", 2)
    monkeypatch.setattr(distributed.global_state, "process_id", 1)
    service, missed, ends = Service(), threading.Event(), []
    failing, other = Client(service, None), Client(service, missed)

    class Left(BaseException):
        pass

    def end(message, last=None):
        ends.append(message)
        raise Left

    monkeypatch.setattr(distributed, "_end", end)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    watches = []
    for each in (failing, other):
        monkeypatch.setattr(distributed.global_state, "client", each)
        watch = distributed.PeerWatch(timeout_s=2)
        monkeypatch.setattr(watch, "_follow_first", lambda: None)
        watches.append(watch)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda watch: watch.__enter__(), watches))
    assert missed.wait(5)
    watches[0]._ended.set()
    watches[0]._tell("no such folder")
    deadline = time.monotonic() + 10
    while not ends and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ends == ["process 1 of 2 ends, for process 1 has failed: no such folder"]
