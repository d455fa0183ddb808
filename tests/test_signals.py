"""Programs that are told to stop at any moment: while they import or compile, while they save, once or twice."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mixformer_jax.media.video import open_source
from mixformer_jax.signals import Stopped, StopSignals, blocked, current, listening
from tests.stand_ins import square_boxes

BUSY = """
import hashlib, pathlib, sys, time
from mixformer_jax import signals
signals.SAME_S = 0.3

def compile():
    "As a compiler does, keeps Python's handlers from running."
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

def wait(signals):
    print("ready", flush=True)
    while not signals.asked():
        time.sleep(0.01)
"""


@pytest.fixture
def program(tmp_path):
    """Starts a script after BUSY; returns its process once it is ready."""
    started = []

    def start(script):
        process = subprocess.Popen(
            [sys.executable, "-c", BUSY + script],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "status", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_with_nothing_to_save_a_program_ends_at_once_even_while_it_compiles(program, number, status, word):
    process = program("with signals.StopSignals('name', 'try again'): compile()")
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == f"name: {word}; try again\n"
    assert process.returncode == status


def test_what_it_has_to_save_is_saved_and_an_echo_of_the_signal_changes_nothing(program):
    process = program(
        "with signals.StopSignals('name') as stop, stop.saving():\n"
        "    wait(stop)\n"
        "    time.sleep(0.2)\n"
        "    print('saved')\n"
        "    sys.exit(7)\n"
    )
    process.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)  # GNU timeout's two
    assert process.communicate(timeout=60) == ("saved\n", "")
    assert process.returncode == 7


def test_a_second_signal_after_a_while_ends_it(program):
    process = program("with signals.StopSignals('name') as stop, stop.saving(): wait(stop); compile()")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "name: interrupted\n"
    assert process.returncode == 130


RECORD = """
import numpy as np
from mixformer_jax.tracking import record
from mixformer_jax.media.video import ArrayFrames
from tests.stand_ins import RedTracker, square_boxes, square_clip
record.STOP_S = 0.3

class Compiling(RedTracker):
    def step(self, state, frame):
        if state == 5:
            compile()
        return super().step(state, frame)

with signals.StopSignals("name"):
    record.record(Compiling(), ArrayFrames(square_clip(9)), square_boxes(1), "video.mp4", "boxes.txt")
"""


def test_a_recording_whose_frame_takes_too_long_is_kept(program, tmp_path):
    process = program(RECORD)
    process.send_signal(signal.SIGINT)
    words = "name: interrupted; the 5 frames tracked until then are in boxes.txt and video.mp4\n"
    assert process.communicate(timeout=60)[1].endswith(words) and process.returncode == 130
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "boxes.txt", delimiter=","), square_boxes(5))
    assert open_source(tmp_path / "video.mp4").num_frames == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.txt", "video.mp4"]


def test_what_is_started_blocked_gets_no_signal(program):
    process = program(
        "import subprocess\n"
        "with signals.blocked():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1); print(1, flush=True)'])\n"
        "with signals.StopSignals('name') as stop, stop.saving():\n"
        "    wait(stop)\n"
        "    sys.exit(child.wait())\n"
    )
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60) == ("1\n", "") and process.returncode == 0


def test_a_program_that_is_done_ends_as_it_said(program):
    process = program("""
import atexit

def take_down():
    print("ready", flush=True)
    time.sleep(2)

atexit.register(take_down)
with signals.StopSignals("program"):
    pass
sys.exit(3)
""")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 3


def test_a_call_of_the_library_hands_the_signal_on():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), listening() as signals:
        assert current() is signals
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked() == signal.SIGINT
        signals.check()
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) and current() is None


def test_a_call_of_the_library_ends_by_a_second_signal(monkeypatch):
    monkeypatch.setattr("mixformer_jax.signals.SAME_S", 0.0)
    with pytest.raises(KeyboardInterrupt) as caught, StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
    assert not isinstance(caught.value, Stopped)


def test_other_threads_leave_signals_alone():
    def enter():
        with StopSignals("name") as signals:
            found.extend([signals.asked(), current()])

    found = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [0, None]


def test_masks_come_back():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with blocked(signal.SIGINT):
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
