"""A few of the tries of `tests/endings.py`."""

import random

import pytest

from tests.endings import try_track, try_train


@pytest.mark.parametrize("one", [try_track, try_train])
def test_ctrl_c_at_a_random_moment(tmp_path, one):
    folder = tmp_path / "0"
    folder.mkdir()
    wrong, told = one(folder, random.Random(2), limit_s=60.0)
    assert not wrong, told
