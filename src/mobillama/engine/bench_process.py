"""The process a contender runs in, and its memory as the system sees it."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError

FIRST_PROMPT_TOKENS = 32
MEMORY_INTERVAL_S = 0.005


@dataclass(frozen=True)
class Contender:
    """An engine with a file: what is measured.

    Attributes:
        engine: ``mobillama`` or ``llama.cpp``.
        options: ``kv_type`` for the one, ``flash_attention`` for the other.
    """

    name: str
    engine: str
    path: Path
    options: dict[str, Any] = field(default_factory=dict[str, Any])


class Worker:
    """A contender's process."""

    def __init__(self, contender: Contender, threads: int, context: int):
        described = {
            "engine": contender.engine,
            "path": str(contender.path),
            "threads": threads,
            "context": context,
            "options": contender.options,
            "first_prompt_tokens": min(FIRST_PROMPT_TOKENS, context),
        }
        # The engine's own threads are asked for; those of a BLAS in NumPy must not disturb.
        environ = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mobillama.engine.bench_worker", json.dumps(described)]
        self.contender = contender
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environ,
        )  # fmt: skip
        self._read()

    def start(self) -> dict[str, float]:
        """Let it open its file and read a short prompt; return ``load_s`` and ``first_token_s``."""
        return self.ask()

    def ask(self, **command: Any) -> dict[str, float]:
        """Send a command and return its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            reason = (self.process.stderr.read().strip() or "no reason given").splitlines()[-1]
            raise UserError(f"{self.contender.path}: {self.contender.name} failed: {reason}")
        return json.loads(line)

    def memory(self) -> tuple[int, int]:
        """Return its resident memory now, in bytes: anonymous, and of files and shared memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        kilobytes = {
            name: int(value.split()[0])
            for name, _, value in (line.partition(":") for line in lines)
            if name.startswith("Rss")
        }
        return 1024 * kilobytes["RssAnon"], 1024 * (kilobytes["RssFile"] + kilobytes["RssShmem"])

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


class MemoryPeak:
    """The greatest resident memory of a worker while it is watched, split into anonymous and file pages."""

    def __init__(self, worker: Worker):
        self._worker = worker
        self._done = threading.Event()
        self.before = worker.memory()
        self.peak = self.before
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(MEMORY_INTERVAL_S):
            self.peak = max(self.peak, self._worker.memory(), key=sum)

    def __enter__(self) -> "MemoryPeak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, self._worker.memory(), key=sum)
