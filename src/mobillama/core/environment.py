"""What made an artifact: versions, machine, command and source commit."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "mobillama", "torch", "transformers", "tokenizers", "safetensors", "datatrove", "numpy", "gguf",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return what this process runs on, as plain values to write into a record."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed_version(name))},
        "platform": platform.platform(),
        "processor": processor_name(),
        "cpu_count": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "source": source_commit(),
    }


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """Return the processor's name as the kernel gives it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine()
    )


def source_commit() -> dict[str, Any]:
    """Return the commit of the checkout this package runs from and whether it has changes, else nulls."""
    here = Path(__file__).parent
    try:
        commit = git(here, "rev-parse", "HEAD")
        tracked = git(here, "ls-files", "--error-unmatch", __file__)
        dirty = bool(git(here, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty} if tracked else {"commit": None, "dirty": None}


def git(directory: Path, *arguments: str) -> str:
    """Return what a git command prints."""
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
