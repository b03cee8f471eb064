"""One engine in one process, for engine.py: reads a request a line, answers with a JSON line of figures.

engine_worker.py ours FILE THREADS KV_TYPE ISA
engine_worker.py stock FILE THREADS flash|plain
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PROMPT = 32
PREFILL = 512
LONG = 1500
DECODED = 48
DECODED_LONG = 24


class Runner(Protocol):
    """What both engines offer here."""

    def evaluate(self, tokens: np.ndarray) -> None:
        """Evaluate tokens and have the last one's logits ready."""
        ...

    def truncate(self, position: int) -> None:
        """Forget what follows ``position``."""
        ...


class Ours:
    def __init__(self, path: str, threads: int, kv_type: str, isa: str) -> None:
        from mobillama.engine import native

        self._session = native.Model(path, threads=threads, kv_type=kv_type, isa=isa).session()  # type: ignore[arg-type]

    def evaluate(self, tokens: np.ndarray) -> None:
        self._session.forward(tokens)

    def truncate(self, position: int) -> None:
        self._session.truncate(position)


class Stock:
    """llama.cpp through its C API, so that no Python of its wrapper counts against it."""

    def __init__(self, path: str, threads: int, flash: bool) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._llama = llama_cpp.Llama(
            path,
            n_ctx=2048,
            n_batch=PREFILL,
            n_ubatch=PREFILL,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=flash,
            verbose=False,
        )

    def evaluate(self, tokens: np.ndarray) -> None:
        for first in range(0, len(tokens), PREFILL):
            part = (self._api.llama_token * len(tokens[first : first + PREFILL]))(
                *tokens[first : first + PREFILL].tolist()
            )
            batch = self._api.llama_batch_get_one(part, len(part))
            if self._api.llama_decode(self._llama.ctx, batch) != 0:
                raise RuntimeError("llama_decode failed")
        self._api.llama_get_logits_ith(self._llama.ctx, -1)

    def truncate(self, position: int) -> None:
        memory = self._api.llama_get_memory(self._llama.ctx)
        self._api.llama_memory_seq_rm(memory, -1, position, -1)


def make(arguments: list[str]) -> Runner:
    kind, path, threads, *rest = arguments
    if kind == "ours":
        return Ours(path, int(threads), rest[0], rest[1])
    return Stock(path, int(threads), rest[0] == "flash")


def token_rate(runner: Runner, tokens: np.ndarray) -> float:
    """Return tokens/s of evaluating ``tokens`` one at a time, by the median token."""
    times = []
    for i in range(len(tokens)):
        begin = time.perf_counter()
        runner.evaluate(tokens[i : i + 1])
        times.append(time.perf_counter() - begin)
    return 1 / statistics.median(times)


def short(runner: Runner, tokens: np.ndarray) -> dict[str, float]:
    """Measure prefill from nothing, and decode after a short prompt."""
    runner.truncate(0)
    begin = time.perf_counter()
    runner.evaluate(tokens[:PREFILL])
    prefill = PREFILL / (time.perf_counter() - begin)
    runner.truncate(PROMPT)
    return {"prefill_512": prefill, "decode_32": token_rate(runner, tokens[:DECODED])}


def long(runner: Runner, tokens: np.ndarray) -> dict[str, float]:
    """Measure decode after LONG tokens, which "fill" has put there, and the most memory so far."""
    runner.truncate(LONG)
    return {"decode_1500": token_rate(runner, tokens[:DECODED_LONG]), "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Return the most resident memory of this process, from its start, in MB of 2**20 bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def main() -> None:
    tokens = np.random.default_rng(0).integers(3, 32000, 2048).astype(np.int32)
    runner: Runner | None = None
    for line in sys.stdin:
        request = line.strip()
        answer: dict[str, Any]
        if request == "start":
            # The library is loaded before the clock starts: what is measured is the model.
            __import__("mobillama.engine.native" if sys.argv[1] == "ours" else "llama_cpp")
            begin = time.perf_counter()
            runner = make(sys.argv[1:])
            opened = time.perf_counter()
            runner.evaluate(tokens[:8])
            end = time.perf_counter()
            answer = {"open_s": opened - begin, "first_token_s": end - begin}
        else:
            runner = runner or make(sys.argv[1:])
            if request == "fill":
                runner.truncate(0)
                runner.evaluate(tokens[:LONG])
                answer = {}
            else:
                answer = {"short": short, "long": long}[request](runner, tokens)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
