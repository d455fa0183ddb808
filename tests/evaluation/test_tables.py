import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.reports.report import (
    SOURCES,
    Report,
    Row,
    Table,
    compare,
    published_rows,
    to_csv,
    to_latex,
    to_markdown,
    to_page,
    to_text,
)

ROWS = (Row("a_1", (10.04, 1.0)), Row("b|c", (20.0, None)), Row("d & <e>", (15.06, float("nan"))))
TABLE = Table("overall", "percent", ("tracker", "AUC", "P"), ROWS, ranked=True)


def test_text():
    assert to_text(TABLE) == "percent\ntracker   AUC    P\na_1      10.0  1.0\nb|c      20.0    -\nd & <e>  15.1    -\n"


def test_markdown():
    lines = to_markdown(TABLE).splitlines()
    assert lines[0] == "### percent"
    assert lines[2:] == [
        "| tracker | AUC | P |",
        "| --- | --: | --: |",
        "| a_1 | 10.0 | 1.0 |",
        r"| b\|c | **20.0** | - |",
        "| d & <e> | 15.1 | - |",
    ]


def test_latex():
    lines = to_latex(TABLE).splitlines()
    assert lines[1] == r"\begin{tabular}{lrr}"
    assert lines[3] == r"tracker & AUC & P \\"
    assert lines[5:8] == [
        r"a\_1 & 10.0 & 1.0 \\",
        r"b|c & \textbf{20.0} & - \\",
        r"d \& <e> & \underline{15.1} & - \\",
    ]
    assert to_latex(Table("x", "", ("\\~^{}", "%$#"), ())).splitlines()[3] == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\{\} & \%\$\# \\"
    )


def test_html():
    page = to_page(Report("r", (), (TABLE,), (), (), {}), {})
    assert "<th>d &amp; &lt;e&gt;</th><td><u>15.1</u></td><td>-</td>" in page
    assert "<td><b>20.0</b></td>" in page


def test_csv_has_all_digits():
    assert list(csv.reader(io.StringIO(to_csv(TABLE)))) == [
        ["tracker", "AUC", "P"],
        ["a_1", "10.04", "1.0"],
        ["b|c", "20.0", ""],
        ["d & <e>", "15.06", ""],
    ]


@given(st.lists(st.tuples(st.text(max_size=5), st.floats(allow_infinity=False)), min_size=1, max_size=5))
def test_csv_comes_back(rows):
    table = Table("x", "", ("name", "value"), tuple(Row(name, (value,)) for name, value in rows))
    read = list(csv.reader(io.StringIO(to_csv(table), newline="")))[1:]
    assert len(read) == len(rows)
    for (name, value), cells in zip(rows, read, strict=True):
        assert cells[0] == name
        assert (cells[1] == "") if np.isnan(value) else (float(cells[1]) == value)


def test_ties_share_a_place_and_few_numbers_have_none():
    table = Table(
        "x", "", ("n", "v", "w"), (Row("a", (1.0, 2.0)), Row("b", (1.04, None)), Row("c", (0.5, None))), 1, True
    )
    assert table.ranks == [("1.0", None), (None, None)]
    assert to_markdown(table).count("**1.0**") == 2


def test_rows_fit_their_header():
    with pytest.raises(ValueError, match="row a has 1 values"):
        Table("x", "", ("n", "v", "w"), (Row("a", (1.0,)),))


# The paper's rows -----------------------------------------------------------------------------------------


def test_published_rows_are_the_papers():
    def rows(benchmark, index=0):
        names, found = published_rows(SOURCES[benchmark][index])
        return names, {row.label: row.values for row in found}

    names, lasot = rows("lasot")
    assert names == ("AUC", "P_norm", "P")
    assert lasot["MixViT-L (ConvMAE)"] == (73.3, 82.8, 80.3) and lasot["SiamFC"] == (33.6, 42.0, 33.9)
    assert lasot["SimTrack-L"] == (70.5, 79.7, None) and "MixViT-L*" not in lasot
    names, got10k = rows("got10k")
    assert names == ("AO", "SR0.5", "SR0.75")
    assert got10k["MixViT-L*"] == (75.7, 85.3, 75.1) and got10k["ECO"] == (31.6, 30.9, 11.1)
    names, trackingnet = rows("trackingnet")
    assert names == ("Success", "P_norm", "P") and trackingnet["MixCvT-L"] == (83.9, 88.9, 83.1)
    names, uav123 = rows("uav123")
    assert names == ("AUC", "P") and uav123["MixCvT"] == (70.4, 91.8) and uav123["ATOM"] == (64.3, None)
    names, vot2020 = rows("vot")
    assert names == ("EAO", "A", "R") and vot2020["MixViT-L"] == (0.584, 0.755, 0.890) and len(vot2020) == 16
    _, vot2022 = rows("vot", 1)
    assert vot2022["MixFormerL"] == (0.602, 0.831, 0.859) and len(vot2022) == 8
    (_, rgbd), (_, depth) = rows("vot_rgbd"), rows("vot_rgbd", 1)
    assert rgbd["MixForRGBD"] == (0.779, 0.816, 0.946) and rgbd["SPT"] == (0.651, 0.798, 0.851) and len(rgbd) == 8
    assert depth["MixFormerD"] == (0.6, 0.758, 0.806) and depth["UpDoT"] == (0.439, 0.652, 0.627) and len(depth) == 6


def test_measured_numbers_stand_above_the_published_ones():
    (table,) = compare("lasot", {"ours": {"AUC": 70.0, "P": 75.0, "P_norm": 80.0, "OP50": 1.0}})
    assert table.header == ("tracker", "AUC", "P_norm", "P") and table.place == "more"
    assert table.rows[0] == Row("ours (measured)", (70.0, 80.0, 75.0))
    assert table.rows[1].label == "MixViT-L (ConvMAE)"
    assert compare("nfs", {}) == []
    assert len(compare("vot", {"ours": {"EAO": 0.5, "A": 0.7, "R": 0.8}})) == 2
