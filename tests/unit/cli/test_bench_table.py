"""The table that ``mobillama bench`` prints."""

import io
from pathlib import Path

from rich.console import Console

from mobillama.cli.benching import print_whole, table_of
from mobillama.engine.bench import Bench, Measurement, Settings
from mobillama.engine.bench_process import Contender


def test_every_figure_is_whole_where_no_terminal_says_how_wide_it_is():
    names = ("mobillama", "llama.cpp", "llama.cpp flash")
    bench = Bench([Contender(name, name, Path("m.gguf")) for name in names], Settings((1,), 512))
    bench.measurements = [
        Measurement(name, "start to first token", "s", (1.0, 1234.5678), threads=16, depth=1500)
        for name in names
    ]
    out = io.StringIO()
    print_whole(table_of(bench), Console(file=out, width=80))
    assert "…" not in out.getvalue()
    assert out.getvalue().count("617783.9") == 3 and "1.00 [1.00, 1.00]" in out.getvalue()
