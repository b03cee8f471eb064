"""Verification speed: bytes a second on one core, beside SHA-256 alone and a plain read of the same files.

    python benchmarks/verify.py [--gigabytes 2] [--files 16] [--repeats 5]

The three take turns over one artifact of random bytes in the page cache (so that the disk is not what is
measured); rates are per second of processor time, which other work on the machine disturbs little.
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mobillama.core.records import write_manifest
from mobillama.lineage.verify import verify

BLOCK_BYTES = 1 << 20


def make(folder: Path, size_bytes: int, files: int) -> None:
    """Write an artifact of random bytes."""
    for number in range(files):
        with (folder / f"{number:05d}.tokens").open("wb") as file:
            for _ in range(size_bytes // files // BLOCK_BYTES):
                file.write(os.urandom(BLOCK_BYTES))
    write_manifest(folder, "corpus")


def verify_artifact(folder: Path) -> None:
    """What ``mobillama verify`` does."""
    assert verify(folder) == []


def sha256_of_each(folder: Path) -> None:
    """The hash that others can check with a standard tool."""
    for path in folder.glob("*.tokens"):
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def read_each(folder: Path) -> None:
    """The least that any check must do."""
    block = bytearray(BLOCK_BYTES)
    for path in folder.glob("*.tokens"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def rates(action: Callable[[Path], None], folder: Path, size_bytes: int) -> tuple[float, float]:
    """Return GB per second of processor time and of wall-clock time."""
    used, started_at = time.process_time(), time.perf_counter()
    action(folder)
    return (
        size_bytes / 1e9 / (time.process_time() - used),
        size_bytes / 1e9 / (time.perf_counter() - started_at),
    )


def main() -> None:
    """Measure in turns and print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    actions = {"mobillama verify": verify_artifact, "SHA-256": sha256_of_each, "read only": read_each}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, int(options.gigabytes * 1e9), options.files)
        size_bytes = sum(path.stat().st_size for path in folder.glob("*.tokens"))
        for _ in range(options.repeats):
            for action_name, action in actions.items():
                measured[action_name].append(rates(action, folder, size_bytes))
    print(f"{size_bytes / 1e9:.2f} GB in {options.files} files, {os.cpu_count()} CPUs")
    for action_name, values in measured.items():
        per_core, wall = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{action_name:<18} {per_core:6.2f} GB/s a core   {wall:6.2f} GB/s wall")


if __name__ == "__main__":
    main()
