import dataclasses
import io
import shutil
import zipfile

import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.datasets.records import MissingFrames
from mixformer_jax.datasets.sequences import TrackingSequence
from mixformer_jax.evaluation.evaluation_servers import pack_results
from mixformer_jax.evaluation.results import ResultsError, SequenceResult, read_times, result_paths, write_result
from mixformer_jax.evaluation.scoring import ResultFolder, SequenceNames
from tests.stand_ins import complaint


def pack(arguments):
    return cli.main(["pack", *arguments])


BOXES = np.array([[11.0, 21, 31.5, 41.25], [12.1234, 21.5, 31.6, 41.3], [13.2, 22, 31.7, 41.4]])
TIMES = np.array([0.512345678, 0.0212, 0.0208])


def _sequence(name, tmp_path):
    hidden = np.full_like(BOXES, np.nan)
    hidden[0] = BOXES[0]
    return TrackingSequence(name, hidden, lambda index: None, 10.0, tmp_path)


@pytest.fixture
def packed(tmp_path):
    """Two sequences in our layout, and where an archive would go."""
    sequences = [_sequence(name, tmp_path) for name in ("GOT-10k_Test_000001", "GOT-10k_Test_000002")]
    folder = tmp_path / "ours"
    folder.mkdir()
    for sequence in sequences:
        write_result(result_paths("pytracking", folder, sequence.name), SequenceResult(BOXES, TIMES, None))
    return folder, sequences, tmp_path / "out" / "ours.zip"


def _members(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_got10k_is_packed_as_its_toolkit_does(packed):
    folder, sequences, out = packed
    assert pack_results("got10k", folder, sequences, out)[1:] == (2, 6, 1)
    name = "GOT-10k_Test_000001"
    members = _members(out)
    assert len(members) == 4
    boxes = "11.000,21.000,31.500,41.250\n12.123,21.500,31.600,41.300\n13.200,22.000,31.700,41.400\n"
    assert members[f"{name}/{name}_001.txt"] == boxes
    assert members[f"{name}/{name}_time.txt"] == "0.51234568\n0.02120000\n0.02080000\n"
    again = out.with_name("again.zip")
    pack_results("got10k", folder, sequences, again)
    assert again.read_bytes() == out.read_bytes()


def test_without_frames_the_length_of_a_test_sequence_is_not_known(packed):
    folder, sequences, out = packed
    unseen = MissingFrames("none")
    known = [dataclasses.replace(sequence, boxes_xywh=BOXES, frame=unseen) for sequence in sequences]
    assert pack_results("got10k", folder, known, out)[1:] == (2, 6, 1)
    hidden = [dataclasses.replace(sequence, boxes_xywh=BOXES[:1], frame=unseen) for sequence in sequences]
    with pytest.raises(ResultsError, match=r"no frames, from which alone the length of GOT-10k_Test_000002 is known"):
        pack_results("got10k", folder, hidden, out)


def test_trackingnet_is_packed_flat(packed):
    folder, sequences, out = packed
    pack_results("trackingnet", folder, sequences, out)
    members = _members(out)
    assert sorted(members) == ["GOT-10k_Test_000001.txt", "GOT-10k_Test_000002.txt"]
    first = members["GOT-10k_Test_000001.txt"].splitlines()
    assert first == ["11.00,21.00,31.50,41.25", "12.12,21.50,31.60,41.30", "13.20,22.00,31.70,41.40"]


def test_repetitions_come_from_got10ks_layout(packed):
    folder, sequences, out = packed
    name = sequences[0].name
    (folder / f"{name}.txt").unlink()
    (folder / name).mkdir()
    for number in (1, 2):
        np.savetxt(folder / name / f"{name}_{number:03d}.txt", BOXES, delimiter=",")
    np.savetxt(folder / name / f"{name}_time.txt", np.stack([TIMES, TIMES], 1), delimiter=",")
    assert pack_results("got10k", folder, sequences, out).repetitions == 2
    assert _members(out)[f"{name}/{name}_time.txt"].startswith("0.51234568,0.51234568\n")
    with pytest.raises(ResultsError, match="2 repetitions; TrackingNet's server takes one"):
        pack_results("trackingnet", folder, sequences, out)
    for number in (3, 4):
        np.savetxt(folder / name / f"{name}_{number:03d}.txt", BOXES, delimiter=",")
    with pytest.raises(ResultsError, match="4 repetitions; the server takes 3"):
        pack_results("got10k", folder, sequences, out)
    (folder / f"{name}.txt").write_text("1,2,3,4\n")
    with pytest.raises(ResultsError, match=r"are both results of GOT-10k_Test_000001; remove one"):
        ResultFolder(folder, SequenceNames([name])).boxes(name)


SECOND = "GOT-10k_Test_000002"
MISTAKES = {
    "missing": (f"{SECOND}.txt", None, r"000002\.txt: no such file"),
    "short": (f"{SECOND}.txt", "11,21,31.5,41.25\n", r"000002\.txt: 1 boxes for 3 frames"),
    "long": (f"{SECOND}.txt", "11,21,31.5,41.25\n" * 4, r"000002\.txt: 4 boxes for 3 frames"),
    "nan": (f"{SECOND}.txt", "11,21,31.5,41.25\n" * 2 + "nan,nan,nan,nan\n", r"000002\.txt, line 3: "),
    "columns": (f"{SECOND}.txt", "11,21,31.5,41.25\n11,21\n", r"000002\.txt, line 2: expected 4 columns"),
    "size": (f"{SECOND}.txt", "11,21,31.5,41.25\n" * 2 + "1,2,-3,4\n", r"000002\.txt, line 3: "),
    "start": (f"{SECOND}.txt", "13,21,31.5,41.25\n" * 3, r"000002\.txt, line 1: .* is not the given box"),
    "no times": (f"{SECOND}_time.txt", None, r"000002_time\.txt: no such file"),
    "few times": (f"{SECOND}_time.txt", "0.1\n0.1\n", r"000002_time\.txt: 2 x 1 times; expected 3 x 1"),
    "nan times": (f"{SECOND}_time.txt", "0.1\nnan\n0.1\n", r"000002_time\.txt: NaN"),
    "negative times": (f"{SECOND}_time.txt", "0.1\n-1\n0.1\n", r"000002_time\.txt, line 2: a time below zero"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_what_a_server_would_refuse_is_named_and_nothing_is_written(packed, mistake):
    folder, sequences, out = packed
    file, content, message = MISTAKES[mistake]
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(ResultsError, match=rf"(?s)1 sequences cannot be submitted; nothing was written.*{message}"):
        pack_results("got10k", folder, sequences, out)
    assert not out.parent.exists()


def test_all_problems_are_counted(packed, tmp_path):
    _, _, out = packed
    sequences = [_sequence(f"s{number}", tmp_path) for number in range(25)]
    (tmp_path / "none").mkdir()
    with pytest.raises(ResultsError, match=r"(?s)25 sequences cannot.*s0\.txt.*and 5 more"):
        pack_results("got10k", tmp_path / "none", sequences, out)


@pytest.mark.parametrize(
    ("benchmark", "folder", "out", "message"),
    [
        ("lasot", "ours", "x.zip", "no server for 'lasot'"),
        ("got10k", "ours", "x.tar", "take .zip archives"),
        ("got10k", "gone", "x.zip", "gone: no such folder"),
    ],
)
def test_unusable_arguments(packed, benchmark, folder, out, message):
    with pytest.raises(ValueError, match=message):
        pack_results(benchmark, packed[0].with_name(folder), packed[1], out)


def test_nothing_to_pack_and_names_twice(packed):
    folder, sequences, out = packed
    with pytest.raises(ResultsError, match="has no sequences"):
        pack_results("got10k", folder, [], out)
    with pytest.raises(ResultsError, match="two sequences are named"):
        pack_results("got10k", folder, [*sequences, sequences[0]], out)


def _times(folder, name):
    return read_times(ResultFolder(folder, SequenceNames([name])).times(name))


def test_times_of_both_layouts(tmp_path):
    assert _times(tmp_path, "a") is None
    (tmp_path / "a_time.txt").write_text("0.5\n0.25\n")
    np.testing.assert_array_equal(_times(tmp_path, "a"), [[0.5], [0.25]])
    (tmp_path / "a").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "a" / f"A_{number:03d}_time.txt").write_text(f"{number}\n0\n")
    np.testing.assert_array_equal(_times(tmp_path, "a"), [[1, 2, 3], [0, 0, 0]])
    (tmp_path / "a" / "A_002_time.txt").write_text("2\n")
    with pytest.raises(ResultsError, match=r"A_001_time\.txt and .*A_002_time\.txt: 2 and 1 times"):
        _times(tmp_path, "a")
    (tmp_path / "a" / "a_time.txt").write_text("0.5,1\n0.25,nan\n")
    np.testing.assert_array_equal(_times(tmp_path, "a"), [[0.5, 1], [0.25, np.nan]])
    (tmp_path / "a" / "a_time.txt").write_text("0.5,1\n0.25\n")
    with pytest.raises(ResultsError, match=r"a_time\.txt, line 2: expected 2 columns"):
        _times(tmp_path, "a")


def test_runs_of_pytracking_are_repetitions(packed):
    folder, sequences, out = packed
    for number in range(3):
        run = folder.with_name(f"ours_{number:03d}")
        shutil.copytree(folder, run)
        for sequence in sequences:
            np.savetxt(run / f"{sequence.name}_time.txt", TIMES + number)
    shutil.rmtree(folder)
    assert pack_results("got10k", folder, sequences, out).repetitions == 3
    name = sequences[1].name
    assert _members(out)[f"{name}/{name}_time.txt"].startswith("0.51234568,1.51234568,2.51234568\n")
    (run / f"{name}.txt").unlink()
    with pytest.raises(ResultsError, match=rf"ours_002/{name}\.txt: no such file"):
        pack_results("got10k", folder, sequences, out)


def test_the_program(tmp_path, capsys):
    root = tmp_path / "TrackingNet"
    frames = root / "TEST" / "frames" / "abc_0"
    frames.mkdir(parents=True)
    for number in range(3):
        (frames / f"{number}.jpg").touch()
    (root / "TEST" / "anno").mkdir()
    (root / "TEST" / "anno" / "abc_0.txt").write_text("11,21,31.5,41.25\n")
    folder = tmp_path / "ours"
    folder.mkdir()
    write_result(result_paths("pytracking", folder, "abc_0"), SequenceResult(BOXES, TIMES, None))
    arguments = ["--dataset", "trackingnet", "--root", str(root), "--results", str(folder)]
    assert pack([*arguments, "--out", str(tmp_path / "x.zip")]) == 0
    printed = capsys.readouterr()
    assert "1 sequences, 3 frames" in printed.out and "the server's test set has 511 sequences" in printed.err
    assert ".zip archives" in complaint(capsys, pack, [*arguments, "--out", str(tmp_path / "x")])
    with zipfile.ZipFile(io.BytesIO((tmp_path / "x.zip").read_bytes())) as archive:
        assert archive.namelist() == ["abc_0.txt"]
