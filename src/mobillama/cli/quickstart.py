"""``mobillama quickstart``: the whole way of the data, on what every machine has."""

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mobillama import engine, report
from mobillama.core import config
from mobillama.core.records import read_jsonl, read_manifest
from mobillama.data import prepare
from mobillama.export import quantize
from mobillama.train import last_checkpoint, train
from mobillama.train.recipe import Recipe

from .places import recipe_path

TARGET_MINUTES = 6


def run(out: Path, overrides: list[str]) -> None:
    """Prepare, train, measure, quantise, speak and report below ``out``; then say what to try next."""
    console, started_at = Console(), time.monotonic()
    places = [f"corpus.directory={out / 'corpus'}", f"run_dir={out / 'run'}"]
    loaded = config.load(recipe_path("quickstart.toml"), Recipe, places + overrides)

    console.rule("1 of 4  The standard library becomes a corpus")
    corpus = prepare(loaded.recipe.corpus)
    console.rule("2 of 4  A model with one shared FFN learns it")
    run_dir = train(loaded)
    console.print(heldout_table(run_dir, corpus))
    console.rule("3 of 4  Four bits, and the engine speaks")
    device_file = out / "model.gguf"
    console.print(str(quantize(run_dir, device_file)))
    model = engine.load(device_file)
    for prompt in loaded.recipe.sample.prompts:
        console.print(f"[bold]{prompt}[/bold]{model.complete(prompt, max_tokens=60)}\n", highlight=False)
    console.rule("4 of 4  The report")
    page = report.write(run_dir)

    minutes = (time.monotonic() - started_at) / 60
    console.print(f"Done in {minutes:.1f} minutes (meant to take at most {TARGET_MINUTES} on two cores).\n")
    console.print(f"  corpus      {corpus}")
    console.print(f"  run         {run_dir}  (last checkpoint: {last_checkpoint(run_dir).name})")
    console.print(f"  device file {device_file}")
    console.print(f"  report      {page}  (open it in a browser)\n")
    console.print("Try next:")
    for command in (
        f"mobillama chat {device_file}",
        f'mobillama trace {run_dir} --prompt "def main("',
        f"mobillama verify {run_dir}",
        f"mobillama seen {run_dir} --step 1",
    ):
        console.print(f"  {command}", highlight=False)


def heldout_table(run_dir: Path, corpus: Path) -> Table:
    """Return held-out bits per byte by subset beside what general compressors need for the same text."""
    heldout = read_manifest(corpus, "corpus")["heldout"]
    measured = read_jsonl(run_dir / "evaluations.jsonl")[-1]["subsets"]
    table = Table("held-out text", "model", "xz -9", "zstd -19", title="Bits per byte (less is better)")
    for subset, result in measured.items():
        size = heldout[subset]["bytes"]
        compressed = [f"{8 * heldout[subset][key] / size:.3f}" for key in ("xz_bytes", "zstd_bytes")]
        table.add_row(subset, f"{result['bits_per_byte']:.3f}", *compressed)
    return table
