"""Programs that outlive the process together with their traces.

JAX's compilation cache saves compiling alone: to be found there, a program is traced and lowered first, which for a
tracker takes longer than all imports. Here a program is found by what decides its trace: the source of this package,
the versions of the libraries that trace it, JAX's settings, the function's static arguments, and types of the others.
Where that has changed and the lowered program has not, it is found by its text, and not compiled again.

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

FOLDER_VARIABLE = "MIXFORMER_PROGRAMS"  # set by cli/compiled.py, before JAX is imported
ACCEPTED = "accepted"  # a file in that folder: XLA loads there what it saved
MAX_BYTES = 2**30  # of a folder
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "einops", "numpy", "jaxtyping")
# Settings of JAX that say where compiled programs are kept, and for how long.
_CACHE_SETTINGS = ("cache", "jax_share_binary_between_hosts")
_DIGEST_BYTES = hashlib.sha256().digest_size
# What a file raises that is whole, and was written by something else.
_UNREADABLE = (pickle.UnpicklingError, EOFError, TypeError, ValueError, AttributeError, ImportError)

logger = logging.getLogger(__name__)
Value = TypeVar("Value")
Program = jax.stages.Compiled


class KeptJit:
    """`jax.jit` of a function whose compiled programs are kept, see the module; those with custom calls are not.

    Settings of JAX that change while the process runs, and a number of Python in the place of an array of its type,
    do not make another program.

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
        self.trace, self.lower = self.jitted.trace, self.jitted.lower  # as jax.jit's
        self._programs: dict[Any, Program] = {}
        # By static arguments, while the others have had the same types in all calls; else None.
        self._only: dict[Any, Program | None] = {}

    def __call__(self, *args: Any) -> Any:
        static, given = args[: self._static], args[self._static :]
        if self._only and (only := self._only.get(static)) is not None:
            try:
                return only(*given)
            except TypeError:  # of other types, or tracers
                self._only[static] = None
        if self._folder(static) is None:
            return self.jitted(*args)
        leaves, tree = jax.tree.flatten(given)
        if any(isinstance(x, jax.core.Tracer) for x in leaves):
            return self.jitted(*args)
        types = tuple(map(_type_of, leaves))
        program = self._programs.get((static, tree, types))
        if program is None:
            program = self._programs[static, tree, types] = self.find(*args)()
        self._only.setdefault(static, program)
        return program(*given)

    def find(self, *args: Any) -> Callable[[], Program]:
        """A call that gives the program for arguments, which may be abstract: it loads or compiles, in any thread.
        Whatever has to be traced is traced before."""
        folder = self._folder(args[: self._static])
        if folder is None:
            return self.jitted.lower(*args).compile
        leaves, tree = jax.tree.flatten(args[self._static :])
        static = map(described, args[: self._static])
        name = self._function.__qualname__.rpartition(".")[2]
        about = f"{self._function.__module__}.{name}", self._identity, *static, tree, *map(_type_of, leaves)
        link = folder / f"{name}-{_key(_surroundings(), *about)}.program"  # names the program's file
        target = _read(link)
        if target is not None and (path := folder / target.decode()).exists():
            return lambda: _loaded(path) or self.jitted.lower(*args).compile()

        # What JAX's cache gives cannot be kept again: XLA leaves out functions. Under a new name it is not found there.
        def fresh(*args: Any) -> Any:
            return self._function(*args)

        token = secrets.token_hex(8)
        fresh.__name__ = f"{name}_{token}"
        lowered = jax.jit(fresh, **self._options).lower(*args)
        text = lowered.as_text().replace(token, "")
        # What they call (LAPACK) is made ready as they are lowered, and a process that only loads them would crash.
        if "custom_call" in text:
            return self.jitted.lower(*args).compile
        # The text says nothing of arguments that are not used, nor of trees.
        trees = lowered.args_info, lowered.out_info
        path = folder / f"{name}-{_key(text, *trees, self._options.get('compiler_options'))}.program"
        _write(link, path.name.encode())

        def compiled() -> Program:
            if (kept := _loaded(path)) is not None:
                return kept
            program = lowered.compile()
            with contextlib.suppress(NotImplementedError):  # not of programs with large constants
                _write(path, pickle.dumps(serialize_executable.serialize(program)))
            return program

        return compiled

    def _folder(self, static: tuple[Any, ...]) -> Path | None:
        return _folder() if self._identity is not None and all(map(is_ours, static)) else None


def kept(name: str, identity: str | None, make: Callable[[], Value]) -> Value:
    """What `make` gives, now or in an earlier process: a value that can be pickled, decided by `identity` alone."""
    folder = None if identity is None else _folder()
    if folder is None:
        return make()
    path = folder / f"{name}-{_key(_surroundings(), name, identity)}.program"
    if (content := _read(path)) is not None:
        with contextlib.suppress(*_UNREADABLE):
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


def _loaded(path: Path) -> Program | None:
    """The program of a file; one that cannot be loaded goes."""
    content = _read(path)
    if content is None:
        return None
    try:
        return serialize_executable.deserialize_and_load(*pickle.loads(content))
    except (*_UNREADABLE, jax.errors.JaxRuntimeError) as error:
        # Of another version of this package, where a class had another place, is nothing to tell.
        level = logging.INFO if isinstance(error, AttributeError | ImportError) else logging.WARNING
        logger.log(level, "%s: cannot be loaded, and is compiled anew: %s", path, error)
        path.unlink(missing_ok=True)
        return None


def _folder() -> Path | None:
    folder, flags = os.environ.get(FOLDER_VARIABLE), os.environ.get("XLA_FLAGS", "").strip()
    if not folder or jax.default_backend() != "cpu" or jax.device_count() != 1:
        return None
    return Path(folder) if flags.startswith("-") or not flags else None  # otherwise it names a file of flags


def _type_of(leaf: Any) -> tuple[Any, ...]:
    """Of an argument: shape, dtype, and whether the dtype yields to others."""
    if not hasattr(leaf, "dtype"):
        return (type(leaf).__name__,)
    return (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False))


def _key(*parts: Any) -> str:
    """Of these, and of what else decides what XLA makes of a program: it divides loops among the cores, too."""
    settings = {
        key: value for key, value in jax.config.values.items() if not any(word in key for word in _CACHE_SETTINGS)
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = "\n".join([_version("jaxlib"), os.environ.get("XLA_FLAGS", ""), repr(settings), *map(str, (cores, *parts))])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def _surroundings() -> str:
    """The package's source, and what traces it; a folder is of one kind of CPU."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    return "\n".join([digest.hexdigest(), sys.version, *(f"{name} {_version(name)}" for name in _LIBRARIES)])


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:  # of an extra
        return "none"


def _read(path: Path) -> bytes | None:
    """What was written there, whole; None where nothing was, XLA may not load what it saved, or it is damaged: that
    goes."""
    if not (path.parent / ACCEPTED).exists():
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the one used least recently goes first
    digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() == digest:
        return content
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return None


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


if FOLDER_VARIABLE in os.environ:
    _surroundings()  # now: files may change before the first program is asked for, and what is imported would not
