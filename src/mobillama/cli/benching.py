"""``mobillama bench``: which contenders, and the tables."""

import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mobillama import engine
from mobillama.core.atomic import write_text
from mobillama.core.errors import UserError, require_extra
from mobillama.core.progress import progress
from mobillama.engine.bench import DECODED_TOKENS, DEPTHS, Bench, Measurement, Ratio, Settings, ratios, record
from mobillama.engine.bench_process import Contender

LLAMA_CPP = "llama.cpp"
LONGEST_LINE = 200
UNITS = {"tokens/s": (1, "tokens/s", ".1f"), "bytes": (1e-6, "MB", ".1f"), "s": (1e3, "ms", ".1f"),
         "J/token": (1e3, "mJ/token", ".1f"), "bytes/s": (1e-9, "GB/s", ".1f")}  # fmt: skip

Key = tuple[str, int | None, int | None]
RATIO_NOTE = (
    "ratio: mobillama to the best of the others: median and range over the repetitions; peak memory is "
    "above the interpreter's own, anonymous and file pages include it"
)


def run(
    model: Path,
    settings: Settings,
    *,
    kv_type: str,
    compare: str | None,
    stock: Path | None,
    json_file: Path | None,
) -> None:
    """Measure, print tables, write JSON.

    Raises:
        UserError: there is no such engine to compare with, or its file cannot be made or read.
    """
    contenders = [Contender("mobillama", "mobillama", model, {"kv_type": kv_type})]
    with ExitStack() as files:
        if compare is not None:
            stock = stock or Path(files.enter_context(tempfile.TemporaryDirectory())) / "stock.gguf"
            contenders += rivals(model, compare, stock)
        bench = Bench(contenders, settings)
        with progress("measuring", bench.parts, "parts") as advance:
            bench.run(advance)
    console = Console()
    print_whole(table_of(bench), console)
    if not any(measurement.what == "energy" for measurement in bench.measurements):
        console.print("energy: this machine gives no counter to measure it by", style="dim")
    if json_file is not None:
        write_text(json_file, json.dumps(record(bench), indent=1) + "\n")


def settings_for(model: Path, threads: list[int] | None, depths: list[int] | None, pairs: int) -> Settings:
    """Return what to measure, within the model's context.

    Raises:
        UserError: the file cannot be opened, or no depth fits into its context.
    """
    if model.suffix != ".gguf":
        raise UserError(f"{model}: bench measures device files; make one with mobillama quantize")
    context_length = engine.load(model).session().context_length
    fitting = [depth for depth in depths or DEPTHS if depth + DECODED_TOKENS <= context_length]
    if not fitting:
        raise UserError(
            f"{model}: its context of {context_length} tokens is below every depth; choose --depth"
        )
    cores = os.cpu_count() or 1
    counts = threads or sorted(
        {1, cores, *(1 << power for power in range(cores.bit_length()) if 1 << power < cores)}
    )
    return Settings(tuple(counts), context_length, tuple(sorted(fitting)), pairs)


def rivals(model: Path, compare: str, stock: Path) -> list[Contender]:
    """Return stock llama.cpp on the same weights, with its flash attention off and on."""
    if compare != LLAMA_CPP:
        raise UserError(f"--compare {compare}: only {LLAMA_CPP} is known")
    require_extra("bench", "llama_cpp", "gguf")
    if not stock.exists():
        from mobillama.export.stock_copy import stock_copy

        stock_copy(model, stock)
    return [
        Contender(f"{LLAMA_CPP}{suffix}", LLAMA_CPP, stock, {"flash_attention": flash})
        for suffix, flash in (("", False), (" flash", True))
    ]


def table_of(bench: Bench) -> Table:
    """Return all figures, a contender a column, and how the first stands to the best of the others."""
    names = [contender.name for contender in bench.contenders]
    title = f"{bench.contenders[0].path.name}: median of {bench.settings.pairs}"
    table = Table(title=title, caption=None if len(names) == 1 else RATIO_NOTE, caption_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("threads", "depth", *names, "unit", *(["ratio"] if len(names) > 1 else [])):
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    best = best_ratios(bench)
    for key, found in by_key(bench.measurements).items():
        what, threads, depth = key
        scale, unit, style = UNITS[next(iter(found.values())).unit]
        cells = [f"{found[name].median * scale:{style}}" if name in found else "" for name in names]
        if "machine" in found:
            cells[0] = f"{found['machine'].median * scale:{style}}"
        ratio = best.get(key)
        spread = f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else ""
        table.add_row(what, shown(threads), shown(depth), *cells, unit, *([spread] if len(names) > 1 else []))
    return table


def print_whole(table: Table, console: Console) -> None:
    """Print a table with every figure whole: what a narrow terminal cannot hold it folds."""
    wanted = console.measure(table, options=console.options.update(width=LONGEST_LINE)).maximum
    console.width = max(console.width, wanted)
    console.print(table)


def best_ratios(bench: Bench) -> dict[Key, Ratio]:
    """Return for each figure the ratio to the contender that does best in it."""
    figures = by_key(bench.measurements)
    best: dict[Key, Ratio] = {}
    for ratio in ratios(bench.measurements, bench.contenders[0].name):
        key = (ratio.what, ratio.threads, ratio.depth)
        if ratio.what == "interpreter":
            continue
        # Of rates the highest is best, of bytes and seconds the least: the harder ratio to beat.
        rate = figures[key][ratio.against].unit == "tokens/s"
        if key not in best or (ratio.median < best[key].median) == rate:
            best[key] = ratio
    return best


def by_key(
    measurements: list[Measurement],
) -> dict[Key, dict[str, Measurement]]:
    """Return the measurements of each figure by contender."""
    found: dict[Key, dict[str, Measurement]] = {}
    for measurement in measurements:
        found.setdefault(measurement.key, {})[measurement.contender] = measurement
    return found


def shown(number: int | None) -> str:
    """Return a number, or nothing for none."""
    return "" if number is None else str(number)
