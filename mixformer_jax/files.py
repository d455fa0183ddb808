"""Files that appear whole or not at all."""

from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Puts a file in place in one step, so that a reader or a restart never sees half of it."""
    # A fixed name: what a killed run left behind is overwritten by the next one.
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    temporary.replace(path)
