"""Tracking needs nothing that only Linux has."""

import subprocess
import sys

from tests.stand_ins import square_clip

# What Windows lacks (macOS lacks less), once the libraries are there, which see to that by themselves.
HIDE = """
import os, signal, sys
import cv2, einops, flax.linen, jax, numpy, safetensors.numpy, tqdm
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "_posixshmem"):
    sys.modules[name] = None
for module, names in (
    (os, "fork forkpty killpg getpgid setpgid setsid getuid geteuid getppid sched_getaffinity sched_setaffinity "
         "statvfs sysconf uname getloadavg posix_fallocate pread mkfifo chown fchmod wait4"),
    (signal, "SIGKILL SIGALRM SIGHUP SIGUSR1 SIGUSR2 SIGCHLD SIGPIPE pthread_sigmask pthread_kill sigwait setitimer "
             "alarm pause"),
):
    for name in names.split():
        vars(module).pop(name, None)
"""
TRACK = """
import importlib, pkgutil
import mixformer_jax
from mixformer_jax import cli
for name in ("media", "models", "convert", "tracking"):
    package = importlib.import_module(f"mixformer_jax.{name}")
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
from tests.stand_ins import RedTracker
mixformer_jax.load = lambda *given, **named: RedTracker()
sys.exit(cli.main(["track", "%d.png", "--box", "35,42,12,12"]))
"""


def test_track_without_what_windows_lacks(tmp_path):
    import cv2

    for index, frame in enumerate(square_clip(5)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), frame[..., ::-1])
    result = subprocess.run([sys.executable, "-c", HIDE + TRACK], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (boxes,) = tmp_path.glob("*_boxes.txt")
    assert len(boxes.read_text().splitlines()) == 5
