"""Files of packed data sets that lie in a bucket (gs://, s3://, whatever fsspec opens): copied here when first needed.

ArrayRecord reads at random, and a crop needs a few kilobytes of a shard: a shard is copied whole, once a machine, into
the user's cache, and read from there.
"""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

from filelock import FileLock

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.files import user_cache, whole_file

PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "abfs": "adlfs", "az": "adlfs"}


def is_remote(root: str | Path) -> bool:
    """Whether this is an address, such as gs://bucket/folder."""
    return re.match(r"\w+://", str(root)) is not None


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A folder elsewhere, and its copy here.

    Attributes:
        address: such as gs://bucket/packed/got10k.
        local: the folder of the copies.
    """

    address: str
    local: Path

    def fetch(self, name: str) -> Path:
        """The copy of a file, made now if it is not there; processes wait for one another.

        Raises:
            DatasetError: no such file, or nothing that opens such addresses is installed.
        """
        path = self.local / name
        if not path.is_file():
            self.local.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f".{name}.lock")):
                if not path.is_file():
                    with whole_file(path) as unfinished:
                        system, place = _file_system(self.address)
                        _named(self.address, name, system.get_file, f"{place}/{name}", str(unfinished))
        return path


def open_bucket(address: str, described_by: str) -> Bucket:
    """The folder at an address; what its file `described_by` says tells copies of one version from another's."""
    address = address.rstrip("/")
    system, place = _file_system(address)
    description = _named(address, described_by, system.cat_file, f"{place}/{described_by}")
    version = hashlib.sha256(address.encode() + description).hexdigest()[:16]
    return Bucket(address, user_cache() / "buckets" / version)


def _named(address: str, name: str, read: Any, *arguments: str) -> Any:
    try:
        return read(*arguments)
    except FileNotFoundError as error:
        raise DatasetError(f"{address}/{name}: no such file; expected what `mixformer data pack` wrote") from error


def _file_system(address: str) -> tuple[Any, str]:
    kind = address.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(address)
    except ImportError as error:
        package = PACKAGES.get(kind)
        install = f"pip install {package}" if package else str(error)
        raise DatasetError(f"{address}: nothing here opens {kind}:// addresses: {install}") from error
    except ValueError as error:
        known = ", ".join(sorted(PACKAGES))
        raise DatasetError(f"{address}: {error}; known are file, memory, {known} and others of fsspec's") from error
