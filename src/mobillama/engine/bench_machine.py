"""The machine itself while a bench runs: its memory, how fast that is copied, how much energy is used."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

RAPL = Path("/sys/class/powercap")
COPIED_BYTES = 1 << 27


def copy_bandwidth(threads: int) -> float:
    """Return the bytes per second, read and written, at which so many threads copy memory just now."""
    sources = np.array_split(np.ones(COPIED_BYTES, np.uint8), threads)
    targets = np.array_split(np.zeros(COPIED_BYTES, np.uint8), threads)
    with ThreadPoolExecutor(threads) as pool:
        started_at = time.perf_counter()
        list(pool.map(np.copyto, targets, sources))
        return 2 * COPIED_BYTES / (time.perf_counter() - started_at)


def claim_memory(size_bytes: int) -> None:
    """Touch and free so much memory, as warm a state as a warm file cache is for files.

    What has been free for some seconds a virtual machine's host may take back, and asking for it anew takes
    longer than reading a model: that would be counted against whichever engine starts first.
    """
    np.ones(size_bytes, np.uint8)


def energy_j() -> float | None:
    """Return the joules the processor packages have used, or None where the machine does not tell."""
    counters = sorted(RAPL.glob("intel-rapl:?/energy_uj"))
    try:
        return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
    except OSError:  # readable by root only, on most machines
        return None
