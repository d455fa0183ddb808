"""What mkdocs cannot do by itself: pages that lie outside docs/, and the API reference, made of the package's modules.

Links on all pages are those of the repository, so that they work there too; here they lead to the site's pages.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "mixformer_jax"

# A file of the repository, and its place in the site.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "pretrain/README.md": "pretrain.md",
    "pretrain/pictures/mae_tiny.png": "pictures/mae_tiny.png",
    "pretrain/pictures/trackmae_tiny.png": "pictures/trackmae_tiny.png",
    "mixformer_jax/assets/mixvit_tiny.md": "mixvit_tiny.md",
    "mixformer_jax/assets/mixvit_nano.md": "mixvit_nano.md",
    "mixformer_jax/assets/mixvit_tiny_masks.md": "mixvit_tiny_masks.md",
    "configs/benchmarks.toml": "benchmarks.toml",
    "LICENSE": "LICENSE.txt",
}
# Targets of links: [text](target) and [text](target#heading), but no addresses and no headings of the same page.
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds a page of the API reference for each package to the navigation."""
    assert config.nav is not None
    pages: list[Any] = [{name: f"api/{name}.md"} for name in _api()]
    config.nav.append({"API reference": pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that do not lie in docs/."""
    for source, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(REPOSITORY / source)))
    for name, text in _api().items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    place = page.file.src_uri
    source = {to: origin for origin, to in OUTSIDE.items()}.get(place, f"docs/{place}")

    def of_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        inside = OUTSIDE.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        # What is no page of the site stays as it is, and a strict build fails.
        return link[1] if inside is None else os.path.relpath(inside, posixpath.dirname(place) or ".")

    return LINK.sub(of_site, markdown)


def _api() -> dict[str, str]:
    """A page for each package with all its modules, and one for the modules at the top."""
    top = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__main__")
    pages = {"mixformer_jax": _page("mixformer_jax", top)}
    for init in sorted(PACKAGE.glob("*/__init__.py")):
        name = init.parent.name
        pages[name] = _page(f"mixformer_jax.{name}", sorted(init.parent.rglob("*.py")))
    return pages


def _page(title: str, modules: list[Path]) -> str:
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in modules]
    blocks = [f"::: {name.removesuffix('.__init__')}\n" for name in names]
    return "\n".join([f"# {title}\n", *blocks])
