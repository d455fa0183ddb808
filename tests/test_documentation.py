"""The pages for contributors name what is there, and the picture of the packages is that of the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "mixformer_jax"
ROOMS_OF_PAGES = ("docs", "pretrain", "mixformer_jax/assets")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_paths_on_the_page_exist(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:mixformer_jax|eval|pretrain|configs|tests|docs)/[\w./-]*)`", text))
    assert len(paths) > 10
    placeholders = {"configs/NAME.py"}
    assert sorted(path for path in paths - placeholders if not (REPOSITORY / path).exists()) == []


def test_names_in_capitals_for_contributors_exist():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", text))
    code = "\n".join(path.read_text(encoding="utf-8") for room in ("mixformer_jax", "eval") for path in _modules(room))
    assert names and sorted(name for name in names if not re.search(rf"\b{name}\b", code)) == []


def test_architecture_lists_every_package():
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    modules = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(listed) == sorted(modules | packages)


def test_picture_of_the_packages_is_that_of_the_code():
    command = [sys.executable, "docs/architecture.py", "--check"]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_links_between_pages_lead_somewhere():
    """`make docs` checks more, headings too; it needs mkdocs."""
    pages = [*REPOSITORY.glob("*.md"), *(page for room in ROOMS_OF_PAGES for page in (REPOSITORY / room).rglob("*.md"))]
    broken = [
        f"{page.relative_to(REPOSITORY)}: {target}"
        for page in sorted(pages)
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert len(pages) > 10 and broken == []


def test_pages_of_the_site_link_to_pages_of_the_site():
    """What lies outside docs/ and is linked from there has a place in the site, see docs/hooks.py."""
    hooks = (REPOSITORY / "docs" / "hooks.py").read_text(encoding="utf-8")
    outside = set(re.findall(r'^    "([\w./]+)": "[\w./]+",$', hooks, flags=re.MULTILINE))
    pages = [*(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / name for name in outside if name.endswith(".md"))]
    linked = {
        (page.parent / target).resolve().relative_to(REPOSITORY).as_posix(): page.name
        for page in pages
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    }
    assert len(outside) > 5 and len(linked) > 20
    assert {target: page for target, page in linked.items() if not target.startswith("docs/")}.keys() <= outside


def test_navigation_has_every_page_of_docs():
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r": (\w+\.md)$", navigation, flags=re.MULTILINE))
    assert {page.name for page in (REPOSITORY / "docs").glob("*.md")} <= listed


def _modules(room: str) -> list[Path]:
    return sorted((REPOSITORY / room).rglob("*.py"))
