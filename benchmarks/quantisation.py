"""What quantisation costs: size and held-out perplexity of each type against the checkpoint in torch.

    python benchmarks/quantisation.py RUN CORPUS --calibrate TEXT [--tokens 40000]

Prints a Markdown table for docs/quantisation.md. Every model sees the same windows; the increase of
perplexity is paired by window, with its standard error.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import torch

from mobillama import engine
from mobillama.export import plan, quantize
from mobillama.export.blocks import Q4_0, dequantise
from mobillama.export.perplexity import Perplexity, heldout_windows, perplexity
from mobillama.model import TorchSession
from mobillama.model.loading import load_language_model

PLANS = {
    **plan.TYPES,
    "FFN 4-bit, rest 8": plan.TypePlan(embeddings="q8_0", attention="q8_0", ffn="q4_0"),
    "attention 4-bit, rest 8": plan.TypePlan(embeddings="q8_0", attention="q4_0", ffn="q8_0"),
    "embeddings 4-bit, rest 8": plan.TypePlan(embeddings="q4_0", attention="q8_0", ffn="q8_0"),
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
    parser.add_argument("--types", nargs="*", default=list(PLANS), help="rows to measure")
    parser.add_argument("--by-layer", action="store_true", help="how the shared FFN's error adds up instead")
    arguments = parser.parse_args()
    windows = list(heldout_windows(arguments.corpus, arguments.length, arguments.tokens))

    def row(name: str, how: str, kv_type: str, found: Perplexity, size_bytes: int) -> None:
        share, error = found.increase_over(reference)
        print(
            f"| {name} | {how} | {kv_type} | {size_bytes / 1e6:.2f} "
            f"| {found.value:.4f} | {share:+.2%} | {error:.2%} |",
            flush=True,
        )

    if arguments.by_layer:
        by_layer(arguments.model, windows)
        return
    reference = perplexity(TorchSession.load(arguments.model), windows)
    print("| type | rounding | KV cache | MB | perplexity | increase | standard error |")
    print("|---|---|---|---|---|---|---|")
    print(f"| checkpoint | torch | | | {reference.value:.4f} | | |")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "m.gguf"
        for name in arguments.types:
            plan.TYPES[name] = PLANS[name]
            for how, calibrate in (("searched scales", None), ("calibrated", arguments.calibrate)):
                if name == "f16" and calibrate:
                    continue
                report = quantize(arguments.model, file, type=name, calibrate=calibrate)
                for kv_type in ("f16", "q8_0"):
                    model = engine.load(file, kv_type=kv_type, context=arguments.length)
                    found = perplexity(model.session(), windows)
                    row(name, how, kv_type, found, report.path.stat().st_size)


def by_layer(directory: Path, windows: list) -> None:
    """Let the first k layers use the FFN rounded to 4 bits, the others the exact one, for growing k."""
    model = load_language_model(directory, device="cpu", dtype=torch.float32)
    config = model.config
    assert config.num_ffns == 1, "meant for a model whose layers share one FFN"
    exact = perplexity(TorchSession(model), windows)
    rounded = copy.deepcopy(model.model.ffns[0])
    for weight in rounded.parameters():
        weight.data = dequantise(*Q4_0.quantise(weight.data))
    model.model.ffns.append(rounded)
    print("| layers with the 4-bit FFN | increase of perplexity | standard error |\n|---|---|---|")
    count = 1
    while count <= config.num_hidden_layers:
        config.ffn_of_layer = [1] * count + [0] * (config.num_hidden_layers - count)
        share, error = perplexity(TorchSession(model), windows).increase_over(exact)
        print(f"| {count} of {config.num_hidden_layers} | {share:+.3%} | {error:.3%} |", flush=True)
        count *= 2


if __name__ == "__main__":
    main()
