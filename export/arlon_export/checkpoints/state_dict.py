"""State dicts on disk, in the formats that people use: headers are read at once, each tensor when it is needed.

A file's ending names its format. A folder follows Hugging Face's file names: one file, or shards with an index. Torch
files are unpickled with ``weights_only``, so no code in them runs.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arlon_rt.errors import BundleError, BundleNotFoundError

SAFETENSORS_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
TORCH_NAMES = ("pytorch_model.bin", "diffusion_pytorch_model.bin")
TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")
INDEX_ENDING = ".index.json"
PREFIXES = ("module.", "model.", "ema.")
"""Prefixes that DistributedDataParallel and training scripts add; one is removed if every key has it."""
WRAPPERS = ("ema", "state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts store the state dict in a torch file; the first one found is read."""
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LISTED = 20
"""The most keys that an error names for one kind of fault; it counts the others."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
}
_POINTER = b"version https://git-lfs"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, read when ``load`` is called."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]
    """Return the tensor on the CPU in ``dtype``, mapped from its file; no other tensor is read."""
    source: Path | None = None
    """The file that holds it; ``None`` for a tensor in memory."""


StateDict = Mapping[str, StoredTensor]


def open_state_dict(path: Path) -> StateDict:
    """The tensors of a file, an index or a Hugging Face folder; only headers are read.

    Raises:
        BundleNotFoundError: the path does not exist, the folder has no weights under a known name, or a shard is
            missing.
        BundleError: a file is damaged or holds more than tensors, or an index does not fit its shards.
    """
    located = _locate(path)
    if not located.name.endswith(INDEX_ENDING):
        return _without_prefix(_open_file(located))
    shard_of = _read_index(located)
    found = merge({shard: _open_file(shard) for shard in dict.fromkeys(shard_of.values())})
    if absent := [f"{name} in {shard.name}" for name, shard in shard_of.items() if name not in found]:
        raise BundleError(
            f"{located} promises {len(absent)} tensors that are not there: {_shortened(absent)}; "
            "index and shards are of different downloads, fetch both again"
        )
    return _without_prefix(found)


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files from which `open_state_dict` reads tensors; it lists the errors."""
    located = _locate(path)
    return tuple(dict.fromkeys(_read_index(located).values())) if located.name.endswith(INDEX_ENDING) else (located,)


def config_file(path: Path) -> Path | None:
    """The config.json of a folder or of a file with a Hugging Face name; ``None`` if there is none.

    A config.json beside another file may belong to something else.
    """
    located = _locate(path)
    known = located.name.removesuffix(INDEX_ENDING) in SAFETENSORS_NAMES + TORCH_NAMES
    config = located.with_name("config.json")
    return config if (path.is_dir() or known) and config.is_file() else None


def merge(parts: Mapping[Path, StateDict]) -> StateDict:
    """Join several state dicts; the error names their paths.

    Raises:
        BundleError: two of them have a key in common.
    """
    owner: dict[str, Path] = {}
    for path, found in parts.items():
        if twice := [f"{name} (also in {owner[name]})" for name in found if name in owner]:
            raise BundleError(f"{path} has {len(twice)} keys a second time: {_shortened(twice)}; remove them from one")
        owner |= dict.fromkeys(found, path)
    return {name: tensor for found in parts.values() for name, tensor in found.items()}


def renamed(found: StateDict, rename: Callable[[str], str]) -> StateDict:
    """The same tensors, with each key renamed by ``rename``."""
    return {rename(name): dataclasses.replace(tensor, name=rename(name)) for name, tensor in found.items()}


def check_fit(
    found: StateDict, expected: Mapping[str, tuple[int, ...]], what: str, *, ignored: Collection[str] = ()
) -> None:
    """Compare a state dict with the keys and shapes that a configuration expects.

    Args:
        what: the state dict's name in the error.
        ignored: keys that it may have and the network does not use.

    Raises:
        BundleError: keys are missing, unknown, of another shape or not of floats. One message lists all, by kind.
    """
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected and name not in ignored]
    shared = [name for name in expected if name in found]

    def describe_missing(name: str) -> str:
        same_shape = [other for other in unknown if found[other].shape == expected[name]]
        alike = difflib.get_close_matches(name, same_shape, n=1)
        return f"{name} {expected[name]}" + (f", perhaps renamed: {alike[0]} is unknown" if alike else "")

    def describe_shape(name: str) -> str:
        swapped = _is_transposed(found[name].shape, expected[name])
        return f"{name} is {found[name].shape}, expected {expected[name]}" + (", transposed" if swapped else "")

    faults = [
        _listed("missing", missing, describe_missing),
        _listed("unknown", unknown, lambda name: f"{name} {found[name].shape}"),
        _listed("of another shape", [n for n in shared if found[n].shape != expected[n]], describe_shape),
        _listed(
            "not of fp32, fp16 or bf16", [n for n in shared if found[n].dtype not in FLOAT_DTYPES],
            lambda name: f"{name} is {str(found[name].dtype).removeprefix('torch.')}",
        ),
    ]
    if any(faults):
        raise BundleError("\n".join([f"{what} does not fit the configuration", *filter(None, faults)]))


def _is_transposed(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and expected in (shape[::-1], (shape[1], shape[0], *shape[2:]))


def _listed(kind: str, names: Sequence[str], describe: Callable[[str], str]) -> str:
    """A heading and one line for each fault; empty if there is none."""
    if not names:
        return ""
    lines = [f"{len(names)} {kind}:", *(f"  {describe(name)}" for name in names[:LISTED])]
    if len(names) > LISTED:
        lines.append(f"  … and {len(names) - LISTED} more")
    return "\n".join(lines)


def _shortened(names: Sequence[str]) -> str:
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest


def _locate(path: Path) -> Path:
    """The file to open: ``path`` itself, or the one in a Hugging Face folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise BundleNotFoundError(f"{path} is neither a file nor a folder; weights are expected there")
    for names in (SAFETENSORS_NAMES, TORCH_NAMES):
        present = [p for n in names for p in (path / n, path / f"{n}{INDEX_ENDING}") if p.is_file()]
        if len(present) > 1:
            raise BundleError(f"{path} has {' and '.join(p.name for p in present)}; name the one to read")
        if present:
            return present[0]
    raise BundleNotFoundError(
        f"{path} has no weights by a known name ({', '.join(SAFETENSORS_NAMES + TORCH_NAMES)}, or one of these with "
        f"{INDEX_ENDING}); name the file itself"
    )


def _read_index(index: Path) -> dict[str, Path]:
    """Key -> shard, as the index states it."""
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(key): str(name) for key, name in shard_of.items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{index} is no index of shards with a weight_map ({error!r:.200})") from error
    for key, name in names.items():
        # Check the name, not the target of links: Hugging Face's cache links every file to a place outside the folder.
        if name in ("", "..") or "\\" in name or PurePosixPath(name).name != name:
            raise BundleError(f"{index}: {key} is in {name!r:.120}; shards lie beside the index, by their plain names")
    shards = {key: index.with_name(name) for key, name in names.items()}
    if absent := sorted({shard.name for shard in shards.values() if not shard.is_file()}):
        raise BundleNotFoundError(f"{index} names shards that are not there: {_shortened(absent)}; download them again")
    return shards


def _open_file(path: Path) -> StateDict:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise BundleError(f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in TORCH_ENDINGS:
        return _open_torch(path)
    raise BundleError(f"{path} ends in {path.suffix!r}; weights end in .safetensors, {', '.join(TORCH_ENDINGS)}")


def _open_safetensors(path: Path) -> StateDict:
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the handle is not iterable
                header = file.get_slice(name)
                dtype = _DTYPES.get(header.get_dtype())
                if dtype is None:
                    raise BundleError(f"{path}: {name} is {header.get_dtype()}; fp32, fp16 or bf16 is expected")
                load = functools.partial(_load_safetensor, path, name)
                found[name] = StoredTensor(name, tuple(header.get_shape()), dtype, load, path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read as safetensors ({error}); download it again") from error
    return found


def _load_safetensor(path: Path, name: str) -> Tensor:
    """Open the file for one tensor, so that no handle stays open between tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: {name} cannot be read any more ({error}); leave the file in its place") from error


def _open_torch(path: Path) -> StateDict:
    if not zipfile.is_zipfile(path):
        raise BundleError(
            f"{path} is not a whole torch file: damaged, cut short, or written before torch 1.6; "
            "download it again, or load it there and torch.save its state dict anew"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        raise BundleError(
            f"{path} holds more than tensors{f' ({code[1]})' if code else ''}; this is code, and it was not run. Where "
            "the file can be trusted, load it there and torch.save(model.state_dict(), ...) alone"
        ) from None
    except (OSError, RuntimeError, ValueError, LookupError, EOFError) as error:
        raise BundleError(f"{path} cannot be read as a torch file ({error!r:.200}); download it again") from error
    return {
        name: StoredTensor(name, tuple(tensor.shape), tensor.dtype, tensor.detach, path)
        for name, tensor in _tensors(path, content).items()
    }


def _tensors(path: Path, content: Any) -> Mapping[str, Tensor]:
    """The state dict in a torch file, taken out of its `WRAPPERS`."""
    while isinstance(content, Mapping):
        wrappers = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if not wrappers:
            break
        logger.info("%s: reading %r of %s", path, wrappers[0], ", ".join(map(repr, content)))
        content = content[wrappers[0]]
    if not isinstance(content, Mapping) or not content:
        raise BundleError(f"{path} holds {type(content).__name__} and no tensors; a state dict is expected")
    others = [f"{k!r:.80} ({type(v).__name__})" for k, v in content.items() if not isinstance(v, Tensor)]
    if others:
        raise BundleError(
            f"{path} has entries that are no tensors: {_shortened(others)}; save the state dict alone, or as one of "
            f"{', '.join(map(repr, WRAPPERS))}"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _without_prefix(found: StateDict) -> StateDict:
    for prefix in PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            return _without_prefix(renamed(found, lambda name: name.removeprefix(prefix)))  # noqa: B023 - called here
    return found
