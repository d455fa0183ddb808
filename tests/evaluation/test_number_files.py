"""Reading tables of numbers: what is read at once is what line by line would give, and the rest is a named error."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.datasets.groundtruth import parse_table
from mixformer_jax.evaluation import results
from mixformer_jax.evaluation.metrics import benchmark_rules, frame_errors, sequence_curves
from mixformer_jax.evaluation.results import ResultsError, read_boxes, read_numbers, read_times


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("numbers") / "car.txt"


def _outcome(read):
    try:
        return read()
    except ResultsError as error:
        return str(error)


_cells = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e4, 1e4).map(lambda value: f"{value:.4f}"),
    st.sampled_from(
        ["", " ", "+1", "-", "1e", "1e5", "1E-3", ".5", "5.", "1 2", "--1", "1e400", "e", "nan", "0x1", "1_0"]
    ),
)
_lines = st.lists(_cells, min_size=1, max_size=6).flatmap(
    lambda cells: st.sampled_from([",", "\t", " ", ", ", "  "]).map(lambda separator: separator.join(cells))
)
_files = st.lists(_lines, min_size=1, max_size=5).flatmap(
    lambda lines: st.sampled_from(["\n", "\r\n", "\r", "\n\n"]).map(lambda end: end.join(lines))
)


@given(
    content=st.one_of(_files, st.text("0123456789.,-+eE \t\n", max_size=40)),
    columns=st.sampled_from([1, 2, 4, None]),
    optional=st.sampled_from(["", "e,f"]),
)
def test_all_at_once_is_what_line_by_line_gives(path, content, columns, optional):
    raw = content.encode()
    names = "a,..." if columns is None else ",".join("abcd"[:columns])
    widths = () if columns is None else (columns, columns + 2) if optional else (columns,)
    at_once = parse_table(raw, widths)
    by_line = _outcome(lambda: results._parse_lines(path, raw, names, optional, widths))
    if at_once is not None:
        assert not isinstance(by_line, str), by_line
        np.testing.assert_array_equal(at_once, by_line)


@given(
    rows=st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 4), min_size=1, max_size=20), separator=st.sampled_from(",\t ")
)
def test_numbers_keep_their_last_bit(path, rows, separator):
    path.write_text("\n".join(separator.join(map(repr, row)) for row in rows))
    np.testing.assert_array_equal(read_numbers(path, "x,y,w,h"), rows)


_mistakes = {
    "fewer columns": lambda row: ",".join(row[:3]),
    "more columns": lambda row: ",".join([*row, "1"]),
    "semicolons": lambda row: ";".join(row),
    "decimal commas": lambda row: ",".join(cell.replace(".", ",") for cell in row),
    "nan": lambda row: ",".join(["nan", *row[1:]]),
    "infinite": lambda row: ",".join([*row[:3], "inf"]),
    "huge": lambda row: ",".join(["9" * 30, *row[1:]]),
    "beyond float": lambda row: ",".join(["1e999", *row[1:]]),
    "negative size": lambda row: ",".join([*row[:2], "-1.5", row[3]]),
    "words": lambda row: "x,y,w,h",
    "blank": lambda row: "",
    "other digits": lambda row: ",".join(["\u0661", *row[1:]]),
    "not UTF-8": lambda row: ",".join([*row[:3], "\udcff"]),
}


@given(data=st.data(), length=st.integers(2, 8))
def test_a_mistake_anywhere_is_named_with_its_line(path, data, length):
    rows = [("12.5", "20.25", "30.5", "40.75")] * length
    mistake = data.draw(st.sampled_from(sorted(_mistakes)))
    place = data.draw(st.integers(0, length - 2))  # blank lines may end a file
    lines = [_mistakes[mistake](row) if i == place else ",".join(row) for i, row in enumerate(rows)]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    with pytest.raises(ResultsError, match=rf"car\.txt, line {place + 1}: "):
        read_boxes(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_named(path, encoding):
    path.write_bytes("12,20,30,40\n13,20,30,40\n".encode(encoding))
    with pytest.raises(ResultsError, match=r"car\.txt, line 1: "):
        read_boxes(path)


def test_a_byte_order_mark_is_no_number(path):
    path.write_bytes(b"\xef\xbb\xbf12,20,30,40\r\n13,20,30,40\r\n")
    np.testing.assert_array_equal(read_boxes(path), [[12, 20, 30, 40], [13, 20, 30, 40]])


@given(data=st.data(), benchmark=st.sampled_from(["lasot", "otb100", "uav123", "nfs", "folder"]))
def test_rows_too_few_or_too_many_have_a_rule_or_an_error(path, data, benchmark):
    """More rows are cut; fewer are an error for lasot and folder, and count as misses elsewhere."""
    length = 6
    truth = np.array([[10.0 + 3 * i, 12, 20, 10] for i in range(length)])
    visible = np.ones(length, bool)
    count = data.draw(st.integers(1, 10))
    rows = np.array([truth[min(i, length - 1)] for i in range(count)])
    path.write_text("\n".join(",".join(map(repr, row)) for row in rows.tolist()) + "\n")
    rules = benchmark_rules(benchmark)

    def score():
        return sequence_curves(frame_errors(read_boxes(path), truth, visible, rules), rules)

    if count < length and not rules.pad_short_results:
        with pytest.raises(ValueError, match=f"{count} predicted boxes for 6 frames"):
            score()
    else:
        assert score().success[10] == min(count, length) / length


@given(content=st.one_of(st.binary(max_size=40), _files.map(str.encode)))
def test_any_times_are_read_or_named(path, content):
    clock = Path(path).with_name("car_time.txt")
    clock.write_bytes(content)
    times = _outcome(lambda: read_times([clock]))
    if isinstance(times, str):
        assert "car_time.txt" in times
    else:
        assert not (times < 0).any() and not np.isinf(times).any()
        assert len(times) == len(content.decode("utf-8-sig").rstrip().splitlines())


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ResultsError, match="cannot be read"):
        read_numbers(tmp_path, "x")
