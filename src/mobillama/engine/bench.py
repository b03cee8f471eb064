"""How fast, how large, how soon, how thirsty: measurements of a device file on this machine.

Every engine runs in a fresh process. Repetitions are interleaved, engine by engine, so that what
disturbs the machine disturbs all; ratios are taken within a repetition and given with their spread.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mobillama.core.environment import environment

from .bench_machine import claim_memory, copy_bandwidth, energy_j
from .bench_process import Contender, MemoryPeak, Worker

PREFILL_TOKENS = 512
DECODED_TOKENS = 32
DEPTHS = (32, 512, 1500)


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        context_length: the model's; greater depths are left out.
        pairs: interleaved repetitions.
    """

    threads: tuple[int, ...]
    context_length: int
    depths: tuple[int, ...] = DEPTHS
    pairs: int = 5

    @property
    def context(self) -> int:
        """The cache that sessions are opened with: no larger than what is measured needs."""
        needed = max(PREFILL_TOKENS, *(depth + DECODED_TOKENS for depth in self.depths))
        return min(self.context_length, needed + DECODED_TOKENS)

    @property
    def prefill_tokens(self) -> int:
        """The length of the timed prompt."""
        return min(PREFILL_TOKENS, self.context)


@dataclass(frozen=True)
class Measurement:
    """One figure of one contender: its samples, in the order of the repetitions."""

    contender: str
    what: str
    unit: str
    samples: tuple[float, ...]
    threads: int | None = None
    depth: int | None = None

    @property
    def key(self) -> tuple[str, int | None, int | None]:
        """What is compared with what."""
        return self.what, self.threads, self.depth

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)


@dataclass(frozen=True)
class Ratio:
    """The first contender to another, within each repetition."""

    against: str
    what: str
    threads: int | None
    depth: int | None
    median: float
    low: float
    high: float


class Bench:
    """Measures contenders side by side."""

    def __init__(self, contenders: list[Contender], settings: Settings):
        self.contenders, self.settings = contenders, settings
        self.measurements: list[Measurement] = []

    def run(self, advance: Callable[[float], None] = lambda done: None) -> list[Measurement]:
        """Take all measurements; ``advance`` is told how many of the `parts` are done."""
        speeds = [partial(self._speed, threads) for threads in self.settings.threads]
        for done, part in enumerate((self._sizes, self._starts, self._memory, *speeds), start=1):
            part()
            advance(done)
        return self.measurements

    @property
    def parts(self) -> int:
        """How many parts a run has."""
        return 3 + len(self.settings.threads)

    def _add(self, contender: Contender, what: str, unit: str, samples: list[float], **where: Any) -> None:
        self.measurements.append(Measurement(contender.name, what, unit, tuple(samples), **where))

    def _sizes(self) -> None:
        for contender in self.contenders:
            self._add(contender, "file size", "bytes", [contender.path.stat().st_size])

    def _starts(self) -> None:
        """Open and answer in fresh processes; the first round only warms the file cache."""
        threads = self.settings.threads[-1]
        needed = 2 * max(contender.path.stat().st_size for contender in self.contenders)
        found: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in self.contenders}
        for repetition in range(self.settings.pairs + 1):
            for contender in self._order(repetition):
                worker = Worker(contender, threads, self.settings.context)
                claim_memory(needed)
                found[contender.name].append(worker.start())
                worker.close()
        for contender in self.contenders:
            times = found[contender.name][1:]
            self._add(contender, "load", "s", [each["load_s"] for each in times], threads=threads)
            first = [each["first_token_s"] for each in times]
            self._add(contender, "start to first token", "s", first, threads=threads)

    def _memory(self) -> None:
        """Watch the memory of one process from before it opens its file to after its last token."""
        threads, deepest = self.settings.threads[-1], max(self.settings.depths)
        for contender in self.contenders:
            worker = Worker(contender, threads, self.settings.context)
            with MemoryPeak(worker) as watched:
                worker.start()
                worker.ask(do="decode", depth=deepest, tokens=DECODED_TOKENS)
            worker.close()
            anonymous, file = watched.peak
            before = sum(watched.before)
            self._add(contender, "peak memory", "bytes", [anonymous + file - before], depth=deepest)
            self._add(contender, "peak anonymous", "bytes", [anonymous], depth=deepest)
            self._add(contender, "peak file pages", "bytes", [file], depth=deepest)
            self._add(contender, "interpreter", "bytes", [before])

    def _speed(self, threads: int) -> None:
        workers = [Worker(contender, threads, self.settings.context) for contender in self.contenders]
        for worker in workers:
            worker.start()
        tasks = [
            ("prefill", self.settings.prefill_tokens),
            *(("decode", depth) for depth in self.settings.depths),
        ]
        samples: dict[tuple[str, str, int], list[float]] = {}
        joules: dict[str, list[float]] = {}
        bandwidth: list[float] = []
        for repetition in range(self.settings.pairs + 1):
            bandwidth.append(copy_bandwidth(threads))
            for what, size in tasks:
                for worker in workers if repetition % 2 else reversed(workers):
                    before = energy_j()
                    rate = measure(worker, what, size)
                    after = energy_j()
                    if repetition == 0:
                        continue  # warms caches and the pages of the key-value cache
                    samples.setdefault((worker.contender.name, what, size), []).append(rate)
                    if what == "decode" and size == tasks[1][1] and before is not None and after is not None:
                        spent = (after - before) / DECODED_TOKENS
                        joules.setdefault(worker.contender.name, []).append(spent)
        for worker in workers:
            worker.close()
        for contender in self.contenders:
            for what, size in tasks:
                found = samples[contender.name, what, size]
                self._add(contender, what, "tokens/s", found, threads=threads, depth=size)
            if contender.name in joules:
                spent = joules[contender.name]
                self._add(contender, "energy", "J/token", spent, threads=threads, depth=tasks[1][1])
        machine = Contender("machine", "", Path())
        self._add(machine, "copy bandwidth", "bytes/s", bandwidth[1:], threads=threads)

    def _order(self, repetition: int) -> list[Contender]:
        return self.contenders if repetition % 2 else self.contenders[::-1]


def measure(worker: Worker, what: str, size: int) -> float:
    """Return tokens per second of one prefill of ``size`` tokens, or of decoding after ``size`` tokens."""
    if what == "prefill":
        return size / worker.ask(do="prefill", tokens=size)["elapsed_s"]
    return DECODED_TOKENS / worker.ask(do="decode", depth=size, tokens=DECODED_TOKENS)["elapsed_s"]


def ratios(measurements: list[Measurement], first: str) -> list[Ratio]:
    """Return ``first``'s figures divided by each other contender's, repetition by repetition.

    Of several settings of one engine a ratio is to be read against its better one.
    """
    ours = {measurement.key: measurement for measurement in measurements if measurement.contender == first}
    found: list[Ratio] = []
    for theirs in measurements:
        mine = ours.get(theirs.key)
        if mine is None or theirs.contender == first:
            continue
        each = [a / b for a, b in zip(mine.samples, theirs.samples, strict=True)]
        found.append(Ratio(theirs.contender, *theirs.key, statistics.median(each), min(each), max(each)))
    return found


def record(bench: Bench) -> dict[str, Any]:
    """Return the measurements as plain values: what ``--json`` writes."""
    measured = [
        {**asdict(measurement), "samples": list(measurement.samples), "median": measurement.median}
        for measurement in bench.measurements
    ]
    has_energy = any(measurement.what == "energy" for measurement in bench.measurements)
    return {
        "format": 1,
        "machine": environment(),
        "contenders": [
            {"name": c.name, "engine": c.engine, "file": c.path.name, **c.options} for c in bench.contenders
        ],
        "settings": {
            **asdict(bench.settings),
            "context": bench.settings.context,
            "decoded_tokens": DECODED_TOKENS,
        },
        "energy_method": "measured" if has_energy else None,
        "measurements": measured,
        "ratios": [asdict(ratio) for ratio in ratios(bench.measurements, bench.contenders[0].name)],
    }
