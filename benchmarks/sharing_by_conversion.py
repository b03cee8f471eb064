"""What becomes of a model whose layers are made to share one FFN, against fewer layers and fewer bits.

    python benchmarks/sharing_by_conversion.py TEACHER RECIPE OUT --calibrate TEXT [--set KEY=VALUE]

TEACHER is a run whose layers own their FFNs. Students are written below OUT, healed by distillation on the
recipe's data and measured on its held-out text; what OUT already holds is not made again. Writes
OUT/results.json and prints one line a model.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from mobillama import engine
from mobillama.core import atomic, config
from mobillama.core.records import manifest_hash, write_manifest
from mobillama.export import quantize
from mobillama.export.perplexity import heldout_windows, perplexity
from mobillama.model import MobiLlamaConfig, MobiLlamaForCausalLM, TorchSession
from mobillama.model.convert import TOKENIZER_FILES, Sharing, convert
from mobillama.train import last_checkpoint, train
from mobillama.train.recipe import Recipe

STARTS, RANKS = ("least-squares", "nearest", "mean"), (32, 8)
# As many bytes as the ranks give: three layers stand beside rank 8, four beside rank 32.
KEPT_LAYERS = ((0, 2, 5, 7), (0, 3, 7))
FILE_TYPES = ("q8_0", "q4_0")
WINDOW_TOKENS = 256


def main() -> None:
    """Make, heal and measure every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--calibrate", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--heldout-tokens", type=int, default=40_000)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = last_checkpoint(options.teacher)
    students = {"teacher": (None, {})}
    for rank, kept in zip(RANKS, KEPT_LAYERS, strict=True):
        for start in STARTS:
            sharing = Sharing("all", start, rank, options.calibrate if start == "least-squares" else None)
            students[f"shared-{start}-rank-{rank}"] = (convert, {"sharing": sharing})
        students[f"layers-{len(kept)}"] = (leave_out_layers, {"kept": kept})
    for start in STARTS:
        sharing = Sharing("all", start, 0, options.calibrate if start == "least-squares" else None)
        students[f"shared-{start}-rank-0"] = (convert, {"sharing": sharing})

    results = options.out / "results.json"
    rows = json.loads(results.read_text()) if results.is_file() else []
    for name, (make, how) in students.items():
        if name in [row["name"] for row in rows]:
            continue
        folder, healed = teacher, None
        if make is not None:
            folder = options.out / "students" / name
            if not folder.is_dir():
                make(teacher, folder, **how)
            healed = heal(folder, teacher, options, options.out / "runs" / name)
        rows.append(row_of(name, folder, healed, options))
        atomic.write_text(results, json.dumps(rows, indent=1) + "\n")


def leave_out_layers(folder: Path, out: Path, *, kept: tuple[int, ...]) -> None:
    """Write the model of a folder, whose layers own their FFNs, with only some of its layers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    table = {"num_hidden_layers": len(kept), "ffn_of_layer": list(range(len(kept)))}
    fewer = MobiLlamaForCausalLM(MobiLlamaConfig(**{**model.config.to_dict(), **table}))
    weights = {}
    for name, weight in model.state_dict().items():
        part, _, rest = name.partition(".")[2].partition(".")
        number, _, leaf = rest.partition(".")
        if part not in ("layers", "ffns"):
            weights[name] = weight
        elif int(number) in kept:
            weights[f"model.{part}.{kept.index(int(number))}.{leaf}"] = weight
    fewer.load_state_dict(weights)
    with atomic.atomic_directory(out) as partial:
        fewer.save_pretrained(partial)
        for name in TOKENIZER_FILES:
            if name != "generation_config.json" and (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        write_manifest(partial, "model", parent=manifest_hash(folder), kept_layers=list(kept))


def heal(student: Path, teacher: Path, options: argparse.Namespace, run: Path) -> Path:
    """Train a student on its teacher's predictions and return its last checkpoint."""
    overrides = [
        *options.overrides, f'model={{start_from="{student}"}}', "train.objective=distill",
        f'distill.teacher="{teacher}"', f'run_dir="{run}"', f"name={run.name}", "train.threads=1",
        f"train.max_steps={options.steps}", f"train.batch_tokens={options.batch_tokens}",
        f"train.schedule.warmup_steps={options.steps // 10}", "train.schedule.batch_ramp_steps=0",
        "checkpoint.count=0", "sample.prompts=[]",
    ]  # fmt: skip
    return last_checkpoint(train(config.load(options.recipe, Recipe, overrides)))


def row_of(name: str, before: Path, healed: Path | None, options: argparse.Namespace) -> dict:
    """Return a model's parameters, and its held-out nats per token: before, healed, in device files."""
    recipe, last = config.load(options.recipe, Recipe, options.overrides).recipe, healed or before
    windows = list(heldout_windows(recipe.corpus.directory, WINDOW_TOKENS, options.heldout_tokens))

    def loss(session: engine.session.Session) -> float:
        found = perplexity(session, windows)
        return float(found.nats.sum() / found.tokens)

    model = AutoModelForCausalLM.from_pretrained(last)
    row = {"name": name, "parameters": sum(weight.numel() for weight in model.parameters())}
    row |= {"before": loss(TorchSession.load(before, dtype="float32"))}
    row |= {"after": loss(TorchSession.load(healed, dtype="float32"))} if healed else {}
    for kind in FILE_TYPES if healed or name == "teacher" else ():
        path = options.out / "files" / f"{name}-{kind}.gguf"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            quantize(last, path, type=kind)
        row[kind] = {"bytes": path.stat().st_size, "loss": loss(engine.load(path, threads=1).session())}
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
