"""A packed store of checkpoints: each distinct tensor once, compressed losslessly against the one before.

    packed/objects/ab/abcd...     one tensor or file, named by the BLAKE3 of its bytes
    packed/step-XXXXXXXX.json     a checkpoint: its own manifest, to the byte, and the objects of each file

Objects come first and a checkpoint's record last, each written whole or not at all: a killed packing leaves
at worst objects that nothing names yet, and the next one takes them over. Export gives back every byte, so
the exported manifest has the hash that children and ledger know.
"""

import json
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from mobillama.core import atomic
from mobillama.core.errors import UserError
from mobillama.core.hashing import total_bytes
from mobillama.core.progress import progress
from mobillama.core.records import (
    MANIFEST,
    Problem,
    as_problem,
    check_files,
    digest,
    read_manifest,
    require_intact,
)
from mobillama.core.tensors import DTYPES, TensorFile

from .encoding import HASH, Bits, decode, encode, read_header

PACKED, OBJECTS = "packed", "objects"
KEYFRAME_EVERY = 8
"""A checkpoint in so many is packed by itself, so that an export decodes few others on its way."""
CACHED_BYTES = 1 << 30
FLUSHES_AT_ONCE = 16
DEEPEST = 400
"""Objects that rest on each other, far more than packing makes."""


@dataclass(frozen=True)
class Packed:
    """What packing did."""

    steps: list[str]
    size_bytes: int
    """Of the checkpoints as they were."""
    stored_bytes: int
    """What they added to the store."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a file that becomes one object: its bytes, and the width of its values."""

    name: str
    data: Bits


class Store:
    """The packed checkpoints of a run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._cache: OrderedDict[str, Bits] = OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the packed checkpoints in step order."""
        return sorted(path.stem for path in self.folder.glob("step-*.json"))

    def record(self, name: str) -> dict[str, Any]:
        """Return a packed checkpoint's record: ``manifest`` (text), ``files`` (path -> objects), ``digest``.

        Raises:
            UserError: it is not packed here, or its record was changed.
        """
        path = self.folder / f"{name}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["digest"] != digest(record):
                raise ValueError("changed after it was written")
        except FileNotFoundError:
            known = ", ".join(self.names()) or "none"
            raise UserError(f"{self.folder}: {name} is not packed here; packed: {known}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: not a packed checkpoint: {error}; restore it") from None
        return record

    def object_path(self, key: str) -> Path:
        """Return where an object lies.

        Raises:
            UserError: the key is no hash, so it might lead anywhere.
        """
        if not HASH.fullmatch(key):
            raise UserError(f"{self.folder}: a record names the object {key!r}; do not use it")
        return self.folder / OBJECTS / key[:2] / key

    def add(self, checkpoint: Path, before: str | None) -> int:
        """Pack one intact checkpoint, against the packed one called ``before``; return the bytes added."""
        require_intact(checkpoint, "checkpoint")
        earlier = self.record(before)["files"] if before else {}
        files: dict[str, list[dict[str, str]]] = {}
        fresh: dict[str, Path] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for entry in read_manifest(checkpoint, "checkpoint")["files"]:
                path = entry["path"]
                bases = {piece["name"]: piece["object"] for piece in earlier.get(path, [])}
                jobs = [(piece, bases.get(piece.name), fresh) for piece in pieces(checkpoint / path)]
                keys = list(pool.map(lambda job: self._put(*job), jobs))
                files[path] = [
                    {"name": job[0].name, "object": key} for job, key in zip(jobs, keys, strict=True)
                ]
        added = sum(partial.stat().st_size for partial in fresh.values())
        self._settle(fresh)
        record: dict[str, Any] = {
            "manifest": (checkpoint / MANIFEST).read_text(encoding="utf-8"),
            "files": files,
        }
        record["digest"] = digest(record)
        atomic.write_text(self.folder / f"{checkpoint.name}.json", json.dumps(record, indent=1) + "\n")
        return added

    def _put(self, piece: Piece, base: str | None, fresh: dict[str, Path]) -> str:
        """Write a piece beside its place unless it is there; note it in ``fresh`` and return its key."""
        key = content_hash(piece.data)
        path = self.object_path(key)
        partial = path.with_name(f".{key}{atomic.PARTIAL_SUFFIX}")
        with self._lock:
            if key in fresh or path.is_file():
                return key
            fresh[key] = partial
        other = self.get(base) if base else None
        if other is not None and (other.shape != piece.data.shape or other.dtype != piece.data.dtype):
            other = None
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(encode(piece.data, other, base))
        return key

    def _settle(self, fresh: dict[str, Path]) -> None:
        """Flush new objects to disk, all at once (one by one costs most of the time), then name them."""

        def flush(partial: Path) -> None:
            with partial.open("rb") as file:
                os.fsync(file.fileno())

        with ThreadPoolExecutor(FLUSHES_AT_ONCE) as pool:
            list(pool.map(flush, fresh.values()))
            for key, partial in fresh.items():
                partial.replace(self.object_path(key))
            list(pool.map(atomic.sync_directory, {partial.parent for partial in fresh.values()}))

    def get(self, key: str, above: tuple[str, ...] = ()) -> Bits:
        """Return the content of an object, checked against its name.

        Arguments:
            above: the objects that are being decoded and rest on this one.

        Raises:
            UserError: it, or one that it was packed against, is missing or damaged.
        """
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        path = self.object_path(key)
        if key in above or len(above) > DEEPEST:
            raise UserError(f"{path}: is packed against itself, or far too many; do not use it")
        try:
            data = path.read_bytes()
        except OSError:
            raise UserError(f"{path}: missing; restore it from a copy of the store") from None
        with naming(path):
            base = read_header(data)[0].base
        if base and not self.object_path(base).is_file():
            raise UserError(f"{path}: was packed against {base}, which is missing; restore the store")
        below = self.get(base, (*above, key)) if base else None
        with naming(path):
            values = decode(data, below)
        if content_hash(values) != key:
            raise UserError(f"{path}: content differs from its name; restore it")
        self._remember(key, values)
        return values

    def _remember(self, key: str, values: Bits) -> None:
        with self._lock:
            self._cache[key] = values
            while sum(one.nbytes for one in self._cache.values()) > CACHED_BYTES and len(self._cache) > 1:
                self._cache.popitem(last=False)

    def export(self, name: str, out: Path) -> Path:
        """Write a packed checkpoint out as the folder that it was, every byte the same, and return it.

        Raises:
            UserError: something in the store is missing or damaged; then nothing is written.
        """
        record = self.record(name)
        with atomic.atomic_directory(out) as partial:
            (partial / MANIFEST).write_text(record["manifest"], encoding="utf-8")
            listed = {entry["path"] for entry in read_manifest(partial, "checkpoint")["files"]}
            if listed != set(record["files"]):
                raise UserError(f"{self.folder / name}.json: its files are not those of its manifest")
            for path, parts in record["files"].items():
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                with (partial / path).open("wb") as file:
                    for part in parts:
                        file.write(self.get(part["object"]).tobytes())
            if problems := check_files(partial):
                raise UserError(
                    f"{self.folder}: {name}: {problems[0].what} after unpacking; restore the store"
                )
        return out

    def check(self) -> list[Problem]:
        """Decode every object that a packed checkpoint names and name each that is damaged."""
        problems: list[Problem] = []
        keys: dict[str, None] = {}
        for name in self.names():
            try:
                files = self.record(name)["files"]
                keys |= {part["object"]: None for parts in files.values() for part in parts}
            except UserError as error:
                problems.append(as_problem(error, self.folder / f"{name}.json"))
        # In the order of the steps: what others rest on is decoded before them.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = [problem for problem in pool.map(self._problem, keys) if problem]
        return [*problems, *dict.fromkeys(found)]

    def _problem(self, key: str) -> Problem | None:
        """Return what is wrong with an object, or with one that it was packed against."""
        try:
            self.get(key)
        except UserError as error:
            place, _, what = str(error).partition(": ")
            return Problem(Path(place), what)
        return None


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Say of an error which object it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def pieces(path: Path) -> Iterator[Piece]:
    """Yield the stretches of a file in order: header and tensors of safetensors, the whole of any other."""
    if path.suffix != ".safetensors":
        yield Piece("", np.frombuffer(path.read_bytes(), np.uint8))
        return
    file = TensorFile(path)
    with path.open("rb") as handle:
        yield Piece("", np.frombuffer(handle.read(file.data_start), np.uint8))
    for name, tensor in sorted(file.tensors.items(), key=lambda item: (item[1].start, item[1].size_bytes)):
        itemsize = np.dtype(DTYPES[tensor.dtype]).itemsize
        yield Piece(name, np.asarray(file.raw(name)).reshape(-1).view(f"<u{itemsize}"))


def pack(run: Path, *, remove: bool = False) -> Packed:
    """Pack every checkpoint of a run that is not packed yet, oldest first.

    Arguments:
        remove: then remove the packed folders, each after its export was compared with it byte for byte;
            the last checkpoint and those that training can resume from stay.

    Raises:
        UserError: there is no checkpoint, or one is not intact.
    """
    folders = sorted(path.parent for path in run.glob(f"checkpoints/step-*/{MANIFEST}"))
    if not folders:
        raise UserError(f"{run}: no checkpoint here to pack")
    store = Store(run / PACKED)
    done, size_bytes, stored_bytes = [], 0, 0
    total = sum(total_bytes(folder) for folder in folders)
    with progress(f"packing {run}", total / 1e6, "MB") as advance:
        for number, folder in enumerate(folders):
            names = store.names()
            if folder.name not in names:
                earlier = [name for name in names if name < folder.name]
                keyframe = len(earlier) % KEYFRAME_EVERY == 0
                stored_bytes += store.add(folder, None if keyframe else earlier[-1])
                size_bytes += total_bytes(folder)
                done.append(folder.name)
            advance(sum(total_bytes(one) for one in folders[: number + 1]) / 1e6, folder.name)
    if remove:
        remove_packed(run, store, folders[:-1])
    return Packed(done, size_bytes, stored_bytes)


def remove_packed(run: Path, store: Store, folders: Iterable[Path]) -> None:
    """Remove checkpoint folders whose export is proven equal; those with a resumable state stay."""
    resumable = {path.parent.name for path in run.glob(f"states/*/{MANIFEST}")}
    for folder in folders:
        if folder.name in resumable:
            continue
        trial = store.export(folder.name, run / PACKED / f".{folder.name}.trial")
        identical = (trial / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()
        shutil.rmtree(trial)
        assert identical and not check_files(folder)
        shutil.rmtree(folder)


def content_hash(values: Bits) -> str:
    """Return the BLAKE3 of an array's bytes."""
    return blake3(values.view(np.uint8).data).hexdigest()
