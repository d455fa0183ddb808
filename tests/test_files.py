from pathlib import Path

import pytest

from mixformer_jax.files import write_atomically


def test_a_write_that_breaks_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "car.txt"
    write_atomically(path, "old\n")

    def full_disk(self, data):
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(Path, "write_bytes", full_disk)
        write_atomically(path, "new\n")
    assert path.read_text() == "old\n"
    write_atomically(path, "new\n")
    assert [p.name for p in tmp_path.iterdir()] == ["car.txt"]
    assert path.read_text() == "new\n"
