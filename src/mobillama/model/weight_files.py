"""Weight files of model folders, safetensors and pickled, read a tensor at a time and never executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mobillama.core.errors import UserError
from mobillama.core.tensors import INDEX, WEIGHTS

PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"


class WeightFile(Protocol):
    """A file of named tensors."""

    path: Path

    def names(self) -> Iterable[str]:
        """Return the names of the tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        ...

    def dtype(self, name: str) -> str:
        """Return a tensor's type, as torch names it."""
        ...

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        ...

    def digest(self, name: str) -> str:
        """Return a hash of a tensor's bytes."""
        ...


class SafetensorsFile:
    """A safetensors file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                self._shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from None

    def names(self) -> Iterable[str]:
        """Return the names of the tensors."""
        return self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """Return a tensor's type, as torch names it."""
        return str(self.read(name).dtype).removeprefix("torch.")

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)

    def digest(self, name: str) -> str:
        """Return a hash of a tensor's bytes."""
        return digest(self.read(name))


class PickledFile:
    """A file that `torch.save` wrote, loaded with `weights_only=True`: its pickle cannot run code.

    It is mapped anew for every tensor, so that what was read does not stay in memory.
    """

    def __init__(self, path: Path):
        self.path = path
        tensors = self._map()
        if wrong := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
            raise UserError(f"{path}: {wrong[0]} is no tensor; not a checkpoint of weights alone")
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self._dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}

    def _map(self) -> dict[str, Any]:
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{self.path}: not a readable file of weights ({reason})") from None

    def names(self) -> Iterable[str]:
        """Return the names of the tensors."""
        return self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """Return a tensor's type, as torch names it."""
        return self._dtypes[name]

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        return self._map()[name]

    def digest(self, name: str) -> str:
        """Return a hash of a tensor's bytes."""
        return digest(self.read(name))


def digest(tensor: Tensor) -> str:
    """Return a hash of a tensor's bytes."""
    return blake3(raw_bytes(tensor)).hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, row by row, little-endian; a view where it is contiguous."""
    values: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)


def weight_files(folder: Path) -> list[WeightFile]:
    """Return the weight files of a model folder: safetensors where there are any, else pickled ones.

    Raises:
        UserError: there are none, an index names a file that is missing or outside the folder, or one
            cannot be read.
    """
    for single, index, kind in (
        (WEIGHTS, INDEX, SafetensorsFile),
        (PICKLED, PICKLED_INDEX, PickledFile),
    ):
        if (folder / index).is_file():
            return [kind(path) for path in shards(folder, folder / index)]
        if (folder / single).is_file():
            return [kind(folder / single)]
    raise UserError(f"{folder}: no weights here ({WEIGHTS} or {PICKLED}, or their shards)")


def shards(folder: Path, index: Path) -> list[Path]:
    """Return the files an index names."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index}: not an index of weights ({error})") from None
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index}: names {name!r}, outside its own folder; do not use it")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing, though {index.name} names it; fetch it again")
    return [folder / name for name in names]
