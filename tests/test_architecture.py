"""The picture of the rooms is that of the code's imports, and the page names files that are there."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_picture_is_todays():
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    text = rooms.PAGE.read_text(encoding="utf-8")
    assert rooms.page(text) == text, "python docs/rooms.py draws it anew"
    assert text.count(" --> ") > 10


def test_pages_for_maintainers_name_files_that_are_there():
    for page, base in (("docs/architecture.md", "mixformer_jax"), ("CONTRIBUTING.md", "mixformer_jax")):
        names = re.findall(r"`([\w./]+\.(?:py|toml|md))`", (ROOT / page).read_text(encoding="utf-8"))
        assert names
        missing = [name for name in names if not ((ROOT / base / name).exists() or (ROOT / name).exists())]
        assert not missing, page
