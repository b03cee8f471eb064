"""The engine against stock llama.cpp: the same random weights of the 0.5B shape, interleaved, as ratios.

    python benchmarks/engine.py --out results.json            # the figures in benchmarks/README.md
    python benchmarks/engine.py --isa avx2 --llama-cpp DIR  # both on AVX2: DIR holds a llama-cpp-python, from

    export CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"
    pip install --no-deps --no-binary :all: --target DIR llama-cpp-python

Each engine lives in its own process; they take turns, never run at once, and the pairs' ratios are what is
reported. Memory and start are measured in fresh processes. Needs the ``bench`` extra and a native build with
tests (for ``bandwidth``).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine_files import BenchShape, write_pair

from mobillama.engine.bench_machine import claim_memory

WORKER = Path(__file__).with_name("engine_worker.py")
BANDWIDTH = Path(__file__).parent.parent / "build" / "native-release" / "tests" / "bandwidth"


@dataclass(frozen=True)
class Case:
    """One line of the table: a shape, and how our engine keeps keys and values."""

    key_value_heads: int
    kv_type: str
    type: str
    threads: int


class Engine:
    """A worker process that holds one engine and does one measurement at a time."""

    def __init__(self, *arguments: object, library: Path | None = None) -> None:
        path = os.pathsep.join(filter(None, (str(library or ""), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def bandwidth(threads: int) -> dict[str, float]:
    """Return streaming read bandwidth in GB/s, of memory and of the last-level cache."""
    return json.loads(subprocess.check_output([str(BANDWIDTH), str(threads)]))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Take ``options.pairs`` interleaved pairs of every measurement of a case."""
    ours_path, stock_path = write_pair(BenchShape(case.key_value_heads, case.type), options.files)
    ours_arguments = ("ours", ours_path, case.threads, case.kv_type, options.isa)
    stock_arguments = ("stock", stock_path, case.threads, "plain" if options.no_flash else "flash")
    arguments = {"ours": ours_arguments, "stock": stock_arguments}
    rounds: list[dict[str, Any]] = [{"ours": {}, "stock": {}} for _ in range(options.pairs)]
    for request in [part for part in ("short", "long") if part in options.parts]:
        engines = {name: Engine(*arguments[name], library=options.llama_cpp) for name in arguments}
        for engine in engines.values():  # warms caches and page tables
            engine.ask("fill" if request == "long" else request)
        for pair, record in enumerate(rounds):
            record[f"bandwidth_{request}"] = bandwidth(case.threads)
            for name in sorted(engines, reverse=pair % 2 == 1):
                record[name] |= engines[name].ask(request)
        for engine in engines.values():
            engine.close()
    for record in rounds if "start" in options.parts else ():  # from fresh processes
        for name in arguments:
            fresh = Engine(*arguments[name], library=options.llama_cpp)
            if not options.cold_memory:
                claim_memory(2 * stock_path.stat().st_size)
            record[name] |= fresh.ask("start")
            fresh.close()
    summary: dict[str, Any] = {}
    for name in rounds[0]["ours"]:
        mine = [record["ours"][name] for record in rounds]
        theirs = [record["stock"][name] for record in rounds]
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        summary[name] = {"ours": spread(mine), "stock": spread(theirs), "ratio": spread(ratios)}
    sizes = ours_path.stat().st_size, stock_path.stat().st_size
    summary["file_bytes"] = {"ours": sizes[0], "stock": sizes[1], "ratio": sizes[0] / sizes[1]}
    measured = [value for record in rounds for key, value in record.items() if key.startswith("bandwidth")]
    for key in ("memory_gb_s", "last_level_cache_gb_s") if measured else ():
        summary[key] = spread([bandwidth[key] for bandwidth in measured])
    return {"case": asdict(case), "summary": summary, "rounds": rounds}


def table(results: list[dict[str, Any]]) -> str:
    """Return the ratios as a Markdown table."""
    names = ("decode_32", "decode_1500", "prefill_512", "peak_mb", "first_token_s")
    lines = ["| case | " + " | ".join(names) + " | memory, cache GB/s |", "|---" * (len(names) + 2) + "|"]
    for result in results:
        case, summary = result["case"], result["summary"]
        cells = [
            f"{case['type']}, {case['key_value_heads']} KV, {case['kv_type']}, {case['threads']} threads"
        ]
        for name in names:
            if name not in summary:
                cells.append("")
                continue
            ratio, ours, stock = (summary[name][key] for key in ("ratio", "ours", "stock"))
            cells.append(
                f"**{ratio['median']:.2f}** [{ratio['min']:.2f}, {ratio['max']:.2f}] "
                f"{ours['median']:.4g} / {stock['median']:.4g}"
            )
        bandwidths = [summary[key] for key in ("memory_gb_s", "last_level_cache_gb_s") if key in summary]
        cells.append(", ".join(f"{each['median']:.0f}" for each in bandwidths))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write all measurements as JSON")
    parser.add_argument("--files", type=Path, default=Path(tempfile.gettempdir()) / "mobillama-bench")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--cases", nargs="+", default=["4:q8_0", "4:f16", "32:f16", "32:q8_0"])
    parser.add_argument("--type", default="q4_0", help="of the weights, as in mobillama quantize")
    parser.add_argument("--parts", nargs="+", default=["short", "long", "start"], help="which to measure")
    parser.add_argument("--isa", default="auto", help="ours")
    parser.add_argument("--no-flash", action="store_true", help="llama.cpp without flash attention")
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="where another build of llama_cpp lies")
    parser.add_argument("--cold-memory", action="store_true", help="do not claim memory before a start")
    arguments = parser.parse_args()
    results = []
    for threads in arguments.threads:
        for text in arguments.cases:
            heads, kv_type = text.split(":")
            case = Case(int(heads), kv_type, arguments.type, threads)
            result = measure(case, arguments)
            results.append(result)
            print(table([result]), flush=True)
    print(table(results))
    if arguments.out:
        record = {"machine": platform.processor() or platform.machine(), "results": results}
        arguments.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
