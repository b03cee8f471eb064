"""What quantisation costs: size and held-out perplexity of each type against the checkpoint in torch.

    python benchmarks/quantisation.py RUN CORPUS --calibrate TEXT [--tokens 40000]

Prints a Markdown table for docs/quantisation.md. Every model sees the same windows; the increase of
perplexity is paired by window, with its standard error.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

from mobillama import engine
from mobillama.export import plan, quantize
from mobillama.export.perplexity import Perplexity, heldout_windows, perplexity
from mobillama.model import TorchSession

PLANS = {
    **plan.TYPES,
    "FFN 4-bit, rest 8": plan.TypePlan(embeddings="q8_0", attention="q8_0", ffn="q4_0"),
    "attention 4-bit, rest 8": plan.TypePlan(embeddings="q8_0", attention="q4_0", ffn="q8_0"),
    "embeddings 4-bit, rest 8": plan.TypePlan(embeddings="q4_0", attention="q8_0", ffn="q8_0"),
    "embeddings 8-bit, rest 4": plan.TypePlan(embeddings="q8_0", attention="q4_0", ffn="q4_0"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--calibrate", type=Path, required=True, metavar="TEXT")
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--length", type=int, default=256)
    arguments = parser.parse_args()
    windows = list(heldout_windows(arguments.corpus, arguments.length, arguments.tokens))

    def row(name: str, how: str, kv_type: str, found: Perplexity, size_bytes: int) -> None:
        share, error = found.increase_over(reference)
        print(
            f"| {name} | {how} | {kv_type} | {size_bytes / 1e6:.2f} "
            f"| {found.value:.4f} | {share:+.2%} | {error:.2%} |",
            flush=True,
        )

    reference = perplexity(TorchSession.load(arguments.model), windows)
    print("| type | rounding | KV cache | MB | perplexity | increase | standard error |")
    print("|---|---|---|---|---|---|---|")
    print(f"| checkpoint | torch | | | {reference.value:.4f} | | |")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "m.gguf"
        for name, types in PLANS.items():
            plan.TYPES[name] = dataclasses.replace(types)
            for how, calibrate in (("searched scales", None), ("calibrated", arguments.calibrate)):
                if name == "f16" and calibrate:
                    continue
                report = quantize(arguments.model, file, type=name, calibrate=calibrate)
                for kv_type in ("f16", "q8_0"):
                    model = engine.load(file, kv_type=kv_type, context=arguments.length)
                    found = perplexity(model.session(), windows)
                    row(name, how, kv_type, found, report.path.stat().st_size)


if __name__ == "__main__":
    main()
