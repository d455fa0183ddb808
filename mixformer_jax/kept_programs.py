"""Programs that outlive the process together with their traces.

JAX's compilation cache saves compiling alone: to be found there, a program is traced and lowered first, which for a
tracker takes longer than all imports. Here a program is found by what decides its trace: the source of this package,
the versions of the libraries that trace it, JAX's settings, the function's static arguments, and types of the others.
For one CPU device; everywhere else, and where no folder is set, this is `jax.jit`.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import secrets
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.experimental import serialize_executable

from mixformer_jax.files import whole_file

FOLDER_VARIABLE = "MIXFORMER_PROGRAMS"
ACCEPTED = "accepted"  # a file in that folder: XLA loads there what it saved
MAX_BYTES = 2**30  # of a folder
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "einops", "numpy", "jaxtyping")
# Settings of JAX that say where compiled programs are kept, and for how long.
_CACHE_SETTINGS = ("cache", "jax_share_binary_between_hosts")
_DIGEST_BYTES = hashlib.sha256().digest_size

logger = logging.getLogger(__name__)
Value = TypeVar("Value")


class KeptJit:
    """`jax.jit` of a function whose compiled programs are kept, see the module; those with custom calls are not.

    Args:
        function: all that it computes is decided by its arguments, the package's source, and `identity`.
        static: so many of its first arguments are static. They are told apart by `repr` and `==`.
        identity: what else the function's closure depends on; None where that cannot be told, and nothing is kept.
        options: of `jax.jit`.
    """

    def __init__(
        self, function: Callable[..., Any], *, static: int = 0, identity: str | None = "", **options: Any
    ) -> None:
        functools.update_wrapper(self, function)
        self._function, self._static, self._identity = function, static, identity
        self._options = {**options, "static_argnums": tuple(range(static))}
        self.jitted = jax.jit(function, **self._options)
        self._programs: dict[Any, jax.stages.Compiled] = {}
        self._newest: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *args: Any) -> Any:
        static, given = args[: self._static], args[self._static :]
        if self._newest and (newest := self._newest.get(static)) is not None:
            with contextlib.suppress(TypeError):  # of other types, or tracers
                return newest(*given)
        if self._folder(static) is None:
            return self.jitted(*args)
        leaves, tree = jax.tree.flatten(given)
        if any(isinstance(x, jax.core.Tracer) for x in leaves):
            return self.jitted(*args)
        types = tuple(map(_type_of, leaves))
        program = self._programs.get((static, tree, types))
        if program is None:
            program = self._programs[static, tree, types] = self.find(*args)()
        self._newest[static] = program
        return program(*given)

    def find(self, *args: Any) -> Callable[[], jax.stages.Compiled]:
        """A call that gives the program for arguments, which may be abstract: it loads or compiles, in any thread.
        Whatever has to be traced is traced before."""
        folder = self._folder(args[: self._static])
        if folder is None:
            return self.jitted.lower(*args).compile
        leaves, tree = jax.tree.flatten(args[self._static :])
        static = map(described, args[: self._static])
        name = self._function.__qualname__.rpartition(".")[2]
        key = _key(f"{self._function.__module__}.{name}", self._identity, *static, tree, *map(_type_of, leaves))
        path = folder / f"{name}-{key}.program"
        if (content := _read(path)) is not None:
            return lambda: serialize_executable.deserialize_and_load(*pickle.loads(content))

        # What JAX's cache gives cannot be kept again: XLA leaves out functions. Under a new name it is not found there.
        def fresh(*args: Any) -> Any:
            return self._function(*args)

        fresh.__name__ = f"{name}_{secrets.token_hex(4)}"
        lowered = jax.jit(fresh, **self._options).lower(*args)
        # What they call (LAPACK) is made ready as they are lowered, and a process that only loads them would crash.
        calls_out = "custom_call" in lowered.as_text()

        def compiled() -> jax.stages.Compiled:
            program = lowered.compile()
            if calls_out:
                return program
            _write(path, pickle.dumps(serialize_executable.serialize(program)))
            if cache := jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
                for entry in Path(cache).glob(f"jit_{fresh.__name__}-*"):
                    entry.unlink(missing_ok=True)  # JAX would never find it
            return program

        return compiled

    def trace(self, *args: Any) -> jax.stages.Traced:
        """As `jax.jit`'s."""
        return self.jitted.trace(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """As `jax.jit`'s."""
        return self.jitted.lower(*args)

    def _folder(self, static: tuple[Any, ...]) -> Path | None:
        return _folder() if self._identity is not None and all(map(is_ours, static)) else None


def kept(name: str, identity: str | None, make: Callable[[], Value]) -> Value:
    """What `make` gives, now or in an earlier process: a value that can be pickled, decided by `identity` alone."""
    folder = None if identity is None else _folder()
    if folder is None:
        return make()
    path = folder / f"{name}-{_key(name, identity)}.program"
    if (content := _read(path)) is not None:
        return pickle.loads(content)
    value = make()
    _write(path, pickle.dumps(value))
    return value


def is_ours(value: Any) -> bool:
    """Whether its class is of this package, so that a change of the class is seen."""
    return type(value).__module__.partition(".")[0] == __name__.partition(".")[0]


def described(value: Any) -> str:
    """An object of ours by its class and settings."""
    return f"{type(value).__module__}.{type(value).__qualname__} {value!r}"


def _folder() -> Path | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder or jax.default_backend() != "cpu" or jax.device_count() != 1:
        return None
    return Path(folder)


def _type_of(leaf: Any) -> tuple[Any, ...]:
    """Of an argument: shape, dtype, and whether the dtype yields to others."""
    if not hasattr(leaf, "dtype"):
        return (type(leaf).__name__,)
    return (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False))


def _key(*parts: Any) -> str:
    settings = {
        key: value for key, value in jax.config.values.items() if not any(word in key for word in _CACHE_SETTINGS)
    }
    text = "\n".join([_surroundings(), os.environ.get("XLA_FLAGS", ""), repr(settings), *map(str, parts)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def _surroundings() -> str:
    """The package's source, and what traces it; a folder is of one kind of CPU."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    return "\n".join([digest.hexdigest(), sys.version, *(f"{name} {_version(name)}" for name in _LIBRARIES)])


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:  # of an extra
        return None


def _read(path: Path) -> bytes | None:
    """What was written there, whole; None where nothing was, it is damaged, or XLA may not load what it saved."""
    if not (path.parent / ACCEPTED).exists():
        return None
    try:
        content = path.read_bytes()
        os.utime(path)  # the one used least recently goes first
    except OSError:
        return None
    digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def _write(path: Path, content: bytes) -> None:
    """Keeps a file, if there is room; the ones used least recently go where there are too many."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, f".{os.getpid()}") as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
        files = sorted((entry.stat().st_mtime, entry.stat().st_size, entry) for entry in path.parent.glob("*.program"))
        excess = sum(size for _time, size, _entry in files) - MAX_BYTES
        for _time, size, entry in files:
            if excess <= 0:
                break
            entry.unlink(missing_ok=True)
            excess -= size
    except OSError as error:
        logger.info("a compiled program is not kept: %s", error)
