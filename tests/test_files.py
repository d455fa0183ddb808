from pathlib import Path

import pytest

from mixformer_jax.files import Part, is_taken, part_path, write_atomically


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


def test_a_part_becomes_the_file(tmp_path):
    for name, part_name in {"a.txt": "a.txt.part", "a.mp4": "a.part.mp4", "a.AVI": "a.part.AVI", "a": "a.part"}.items():
        path = tmp_path / name
        part = Part(path, overwrite=False)
        assert part.path == part_path(path) == tmp_path / part_name and is_taken(path)
        part.path.write_text("content")
        part.finish()
        assert path.read_text() == "content" and not part.path.exists() and is_taken(path)


def test_a_file_belongs_to_one_run(tmp_path):
    path = tmp_path / "a.txt"
    part = Part(path, overwrite=False)
    with pytest.raises(FileExistsError, match=r"a\.txt\.part.*another run is writing a\.txt, or was killed"):
        Part(path, overwrite=False)
    part.path.write_text("first")
    part.finish()
    with pytest.raises(FileExistsError, match=r"a\.txt: is there already.*--overwrite"):
        Part(path, overwrite=False)
    second = Part(path, overwrite=True)
    assert path.read_text() == "first", "until the second is finished"
    second.path.write_text("second")
    second.finish()
    assert path.read_text() == "second"


def test_a_file_that_came_meanwhile_stays(tmp_path):
    path = tmp_path / "a.txt"
    part = Part(path, overwrite=False)
    part.path.write_text("ours")
    path.write_text("theirs")
    with pytest.raises(FileExistsError, match=r"this run's is .*a\.txt\.part"):
        part.finish()
    assert (path.read_text(), part.path.read_text()) == ("theirs", "ours")


def test_a_part_that_another_run_took(tmp_path):
    first = Part(tmp_path / "a.txt", overwrite=False)
    first.path.write_text("first")
    second = Part(tmp_path / "a.txt", overwrite=True)
    second.path.write_text("second")
    with pytest.raises(FileNotFoundError, match="removed or replaced"):
        first.finish()
    second.finish()
    assert (tmp_path / "a.txt").read_text() == "second"


def test_an_empty_part_leaves_nothing(tmp_path):
    Part(tmp_path / "a.txt", overwrite=False).finish()
    assert list(tmp_path.iterdir()) == []
