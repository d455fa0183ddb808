"""Files of official checkpoints: `.pth` and its kin, and `.safetensors` with official names.

A `.pth` is a pickle, which can run any program. PyTorch's restricted unpickler builds tensors and plain containers
only. Records that official trainers save beside the weights become empty objects; other classes are refused by name.
"""

import functools
import io
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (of JAX; makes bfloat16 a type that NumPy and safetensors know)
import numpy as np
from safetensors import safe_open

from mixformer_jax.convert.weights import FORMAT, Tensors, WeightsError, readable, to_safetensors
from mixformer_jax.files import write_atomically

TORCH_SUFFIXES = (".pth", ".pth.tar", ".pt")
# Keys of the state dict: MixFormer's trainer; MAE, ConvMAE, DeiT; CvT, timm.
STATE_KEYS = ("net", "model", "state_dict")

# Saved beside it: MixFormer's settings and statistics, Alpha-Refine's likewise and its constructor, MAE's command line,
# NumPy's scalars.
SETTINGS = "lib.train.admin.settings.Settings"
BOOKKEEPING = (
    "ltr.admin.settings.Settings",
    "ltr.admin.stats.AverageMeter",
    "ltr.admin.stats.StatValue",
    "ltr.admin.local.EnvironmentSettings",
    "ltr.admin.model_constructor.NetConstructor",
    "lib.train.admin.stats.AverageMeter",
    "lib.train.admin.stats.StatValue",
    "lib.train.admin.local.EnvironmentSettings",
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",  # as Python 3.13 writes it
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)


class OfficialState(NamedTuple):
    tensors: Tensors  # floats as float32; each is read on access
    left_behind: tuple[str, ...]  # what else the file holds (`optimizer`, `epoch`, ...)
    experiment: str | None = None  # name of the official experiment's yaml (`baseline_got`), if settings tell it


class Inert:
    """Stands in for a trainer's class; takes any arguments and keeps nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class TrainerSettings(Inert):
    """Stands in for the settings of MixFormer's trainer; keeps the experiment's name only."""

    config_name: str | None = None

    def __setstate__(self, state: Any) -> None:
        name = state.get("config_name") if isinstance(state, Mapping) else None
        self.config_name = name if isinstance(name, str) else None


class _Tensors(Mapping[str, np.ndarray]):
    """Tensors of a file by name, read on access: a file need not fit into memory."""

    def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        # DataParallel's prefix.
        skipped = len("module.") if all(name.startswith("module.") for name in readers) else 0
        self._readers = {name[skipped:]: reader for name, reader in readers.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read_official(path: str | Path) -> OfficialState:
    """Reads a state dict from `.safetensors`, or from what `torch.save` wrote.

    Raises:
        WeightsError: no such file, or one that is empty, truncated, damaged, of another program, without a state dict,
            or a pickle with unknown classes.
        ModuleNotFoundError: a file of PyTorch's without PyTorch.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected a checkpoint of PyTorch's (.pth, .pth.tar) or .safetensors")
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise WeightsError(f"{path}: an empty file")
    if path.suffix == ".safetensors":
        if _is_torch(start):  # PyTorch itself goes by the name, not the content
            raise WeightsError(f"{path}: holds a file of PyTorch's; rename it to end in .pth")
        return _read_safetensors(path)
    if start[8:9] == b"{":
        raise WeightsError(f"{path}: holds .safetensors data; rename it to end in .safetensors")
    return _read_torch(path, start)


def is_official(path: Path) -> bool:
    """Whether a file is PyTorch's, by its content or else its name, or a .safetensors with another format than ours."""
    with path.open("rb") as file:
        start = file.read(16)
    if _is_torch(start) or (start[8:9] != b"{" and path.name.endswith(TORCH_SUFFIXES)):
        return True
    return not (safetensors_format(path) or "").startswith(FORMAT)


def is_ours(format_name: str, path: Path) -> bool:
    """Whether this is a file of ours of this format; WeightsError for a .safetensors file that cannot be read."""
    return path.suffix == ".safetensors" and safetensors_format(path) == format_name


def safetensors_format(path: Path) -> str | None:
    """The `format` in a .safetensors header, if any; WeightsError for a file that cannot be read."""
    with readable(path), safe_open(path, framework="numpy") as file:
        return (file.metadata() or {}).get("format")


def write_torch(path: str | Path, tensors: Iterable[tuple[str, np.ndarray]], key: str = STATE_KEYS[0]) -> None:
    """Writes a checkpoint for official code, `{key: state dict}`: `net` for MixFormer, `model` for MAE.

    Each tensor is read once, so that the caller can free it. Raises ModuleNotFoundError without PyTorch.
    """
    import torch

    # Not ascontiguousarray, which makes scalars vectors.
    state = {name: torch.from_numpy(np.require(value, requirements=["C", "W"])) for name, value in tensors}
    file = io.BytesIO()
    torch.save({key: state}, file)
    write_atomically(Path(path), file.getvalue())


def write_official_safetensors(path: str | Path, tensors: Tensors) -> None:
    """Writes official names and layouts as .safetensors, for `safetensors.torch.load_file`."""
    write_atomically(Path(path), to_safetensors(tensors, {"format": "pt"}))


def _read_safetensors(path: Path) -> OfficialState:
    with readable(path):
        file = safe_open(path, framework="numpy")
        names = list(file.keys())

    def read(name: str) -> np.ndarray:
        value = file.get_tensor(name)
        return value if np.issubdtype(value.dtype, np.integer) else value.astype(np.float32, copy=False)

    return OfficialState(_Tensors({name: functools.partial(read, name) for name in names}), ())


def _is_torch(start: bytes) -> bool:
    # A .safetensors file has its header's length in the first eight bytes, and then a brace.
    return start[8:9] != b"{" and (start.startswith(b"PK") or start[:1] == pickle.PROTO)


def _read_torch(path: Path, start: bytes) -> OfficialState:
    import torch

    is_zip = start.startswith(b"PK")
    if is_zip:
        _check_archive(path)
    elif start[:1] != pickle.PROTO:
        raise WeightsError(f"{path}: not a file of PyTorch's, nor .safetensors")
    with torch.serialization.safe_globals([(TrainerSettings, SETTINGS), *((Inert, name) for name in BOOKKEEPING)]):
        try:
            # Files from before PyTorch 1.6 cannot be memory-mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except Exception as error:  # a damaged pickle can fail in every way there is
            raise WeightsError(_failure(path, error)) from error
    return _find_state(path, content)


def _check_archive(path: Path) -> None:
    """Checks the zip archive's checksums, which a memory-mapped file would skip."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            is_packed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
            # PyTorch can save without checksums, as zeros.
            is_checkable = not is_packed and any(info.CRC for info in archive.infolist())
            broken = archive.testzip() if is_checkable else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise WeightsError(f"{path}: truncated or damaged: copy or download it again ({error})") from error
    if not any(name.endswith("/data.pkl") for name in names):
        raise WeightsError(f"{path}: a zip archive, but none of PyTorch's (it holds: {', '.join(names[:3])})")
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(f"{path}: a TorchScript program; expected the state dict of its module")
    if is_packed:
        raise WeightsError(f"{path}: an archive that was packed again with compression; expected torch.save's own")
    if broken is not None:
        raise WeightsError(f"{path}: damaged: the checksum of {broken} is wrong; copy or download it again")


def _failure(path: Path, error: Exception) -> str:
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign is None:
        # Without PyTorch's advice to load the file unprotected.
        reason = str(error).partition("WeightsUnpickler error: ")[2].strip().partition("\n")[0] or type(error).__name__
        return f"{path}: truncated, damaged, or not written by torch.save ({reason})"
    return (
        f"{path}: refused: beside tensors it holds {foreign[1]}, which would run code when it is loaded; nothing of it "
        "was run. If you trust its source, save the weights alone, in the environment that wrote it: "
        "torch.save({'net': torch.load(PATH, weights_only=False)['net']}, 'weights.pth')"
    )


def _find_state(path: Path, content: Any) -> OfficialState:
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: holds a {type(content).__name__}; expected a dictionary with a state dict")
    nested = [key for key in STATE_KEYS if isinstance(content.get(key), Mapping) and content[key]]
    state = content[nested[0]] if nested else content
    odd = [str(key) for key, value in state.items() if not (isinstance(key, str) and _is_array(value))]
    if odd:
        where = f"its {nested[0]!r} holds" if nested else f"no state dict under {' or '.join(STATE_KEYS)}, but"
        raise WeightsError(f"{path}: {where} {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}; expected tensors")
    left_behind = tuple(str(key) for key in content if key not in nested[:1]) if nested else ()
    settings = content.get("settings") if nested else None
    return OfficialState(
        _Tensors({name: functools.partial(_to_array, value) for name, value in state.items()}),
        left_behind,
        settings.config_name if isinstance(settings, TrainerSettings) else None,
    )


def _is_array(value: Any) -> bool:
    """Whether this is a dense tensor in memory."""
    import torch

    is_tensor = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return is_tensor and not (value.is_quantized or value.is_complex())


def _to_array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
