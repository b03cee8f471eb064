"""What is recorded of a step, in ``metrics.jsonl`` and for TensorBoard."""

import json
import os
import resource
import time
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from mobillama.model.accounting import training_flops_per_token
from mobillama.model.configuration import MobiLlamaConfig

RECORDS = ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl")


def peak_flops(device: torch.device) -> float | None:
    """Return a device's peak in FLOP/s: stated for a GPU that we know, measured for a CPU, else None.

    Source: NVIDIA's data sheets, dense bf16 without sparsity.
    """
    if device.type == "cpu":
        return measured_flops()
    known = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in known.items() if part in name), None)


def measured_flops(size: int = 1024, rounds: int = 8) -> float:
    """Return the FLOP/s of this CPU's best bf16 product of two square matrices, on the threads in use."""
    matrix = torch.ones(size, size, dtype=torch.bfloat16)
    best_s = float("inf")
    for _ in range(rounds):
        started_at = time.monotonic()
        torch.mm(matrix, matrix)
        best_s = min(best_s, time.monotonic() - started_at)
    return 2 * size**3 / best_s


def flop_utilisation(tokens_per_second: float, flops_per_token: float, peak: float) -> float:
    """Return the share of a device's peak that the model's own arithmetic takes (MFU, PaLM appendix B)."""
    return tokens_per_second * flops_per_token / peak


def memory_bytes(device: torch.device) -> int:
    """Return the most memory in use so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class Recorder:
    """Writes the records of a run; on other ranks than the leading one it writes nothing."""

    run: Path
    leads: bool

    def __post_init__(self) -> None:
        self.board = SummaryWriter(str(self.run / "tensorboard")) if self.leads else None

    def write(self, record: str, step: int, **values: Any) -> None:
        """Append one line to a record and its numbers to TensorBoard."""
        if self.board is None:
            return
        with (self.run / record).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for key, value in values.items():
            if isinstance(value, (int, float)):
                self.board.add_scalar(key, value, step)

    def until(self, step: int) -> dict[str, int]:
        """Return how many bytes of each record tell of nothing after ``step``."""
        kept: dict[str, int] = {}

        def stays(line: bytes) -> bool:
            return line.endswith(b"\n") and json.loads(line)["step"] <= step

        for name in RECORDS:
            if (self.run / name).is_file():
                lines = (self.run / name).read_bytes().splitlines(keepends=True)
                kept[name] = sum(map(len, takewhile(stays, lines)))
        return kept

    def cut(self, kept: dict[str, int]) -> None:
        """Forget what comes after so many bytes of each record; it will be recorded again."""
        for name, size_bytes in kept.items():
            os.truncate(self.run / name, size_bytes)

    def sync(self) -> None:
        """Push what was written to the disk."""
        if self.board is None:
            return
        self.board.flush()
        for path in (self.run / name for name in RECORDS if (self.run / name).is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())


class Meter:
    """Speed since the last reading."""

    def __init__(self, config: MobiLlamaConfig, sequence_length: int, device: torch.device, ranks: int):
        self.flops_per_token = training_flops_per_token(config, sequence_length)
        self.device = device
        self.peak = peak_flops(device)
        self.ranks = ranks
        self.tokens, self.since = 0, time.monotonic()

    def read(self) -> dict[str, float | None]:
        """Return tokens/s over all ranks, FLOP utilisation where the peak is known, and peak memory."""
        moment = time.monotonic()
        rate = self.tokens / (moment - self.since)
        self.tokens, self.since = 0, moment
        mfu = flop_utilisation(rate, self.flops_per_token, self.peak * self.ranks) if self.peak else None
        return {"tokens_per_second": round(rate, 1), "mfu": mfu, "memory_bytes": memory_bytes(self.device)}
