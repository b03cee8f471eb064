"""A small but complete run directory and its corpus, made by code: what training and preparation write.

The weights are random numbers that drift; the curves are formulas. Everything else - manifests, chain of
parents, ledger, hashes - is made by the same functions that make the real ones.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np

from mobillama.core import records
from mobillama.core.environment import environment
from mobillama.core.records import Ledger, append_line, manifest_hash, write_manifest

SUBSETS = {"docs": 1.62, "code": 1.21}
HIDDEN, FFN, LAYERS, VOCABULARY = 16, 40, 4, 64
STEPS, EVERY, SPIKE_STEP = 400, 50, 210
PROMPTS = ("def main(", "The function returns")


def bf16(values: np.ndarray) -> np.ndarray:
    """Return the upper halves of float32 values."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """Write name -> (dtype, array) as the format's specification says, with code of this file alone."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for _, array in tensors.values())
    )


def weights(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Return one shared-FFN model's weights in float32."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        for name in "qkvo":
            shapes[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        for name in ("input", "post_attention"):
            shapes[f"model.layers.{layer}.{name}_layernorm.weight"] = (HIDDEN,)
    shapes |= {f"model.ffns.0.{name}_proj.weight": (FFN, HIDDEN) for name in ("gate", "up")}
    shapes |= {"model.ffns.0.down_proj.weight": (HIDDEN, FFN), "model.norm.weight": (HIDDEN,)}
    shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


def make_corpus(directory: Path, seed: int = 0) -> Path:
    """Write a corpus of two subsets with shards, document tables, tokenizer and manifest."""
    import pyarrow as pa

    random = np.random.default_rng(seed)
    for part, documents in (("train", 40), ("heldout", 4)):
        for subset in SUBSETS:
            folder = directory / part / subset
            folder.mkdir(parents=True)
            lengths = random.integers(20, 200, documents)
            tokens = random.integers(0, VOCABULARY, int(lengths.sum())).astype("<u2")
            tokens.tofile(folder / "00000.tokens")
            table = pa.table(
                {
                    "id": [f"{subset}/{part}/{number}" for number in range(documents)],
                    "source": ["a test"] * documents,
                    "license": ["CC0-1.0"] * documents,
                    "offset": pa.array(np.cumsum(lengths) - lengths, pa.uint64()),
                    "length": pa.array(lengths, pa.uint32()),
                    "size_bytes": pa.array(lengths * 4, pa.uint64()),
                    "sha256": ["0" * 64] * documents,
                }
            )
            path = str(folder / "00000.documents")
            with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE"}}')
    for number in range(5):
        append_line(
            directory / "dropped.jsonl",
            json.dumps(
                {"id": f"docs/{number}", "subset": "docs", "reason": "too short", "detail": "12 bytes"}
            ),
        )
    append_line(
        directory / "dropped.jsonl",
        json.dumps({"id": "code/9", "subset": "code", "reason": "exact duplicate", "detail": "of code/3"}),
    )
    write_manifest(
        directory,
        "corpus",
        inputs=[{"path": "library", "size_bytes": 10, "sha256": "1" * 64}],
        recipe={"subsets": [{"name": name, "kind": "stdlib"} for name in SUBSETS]},
        tokenizer={"vocab_size": VOCABULARY, "end_of_text_id": 0, "dtype": "<u2"},
        subsets={
            name: {
                "train": counts(directory, "train", name, documents=40),
                "heldout": counts(directory, "heldout", name, documents=4),
                "dropped": {"docs": {"too short": 5}, "code": {"exact duplicate": 1}}[name],
                "quarantined": 0,
            }
            for name in SUBSETS
        },
        heldout={
            name: {
                "documents": 4,
                "bytes": 1000 * (2 + number),
                "xz_bytes": 640 + 300 * number,
                "zstd_bytes": 680 + 310 * number,
            }
            for number, name in enumerate(SUBSETS)
        },
    )
    return directory


def counts(directory: Path, split: str, subset: str, *, documents: int) -> dict[str, int]:
    """Return what a manifest counts of one split of a subset."""
    tokens = sum(path.stat().st_size // 2 for path in (directory / split / subset).glob("*.tokens"))
    return {"documents": documents, "tokens": tokens, "size_bytes": tokens * 4}


def make_run(directory: Path, corpus: Path, seed: int = 0, peak: float = 4e-3) -> Path:
    """Write a whole run of ``STEPS`` steps with a checkpoint every ``EVERY`` steps."""
    directory.mkdir(parents=True)
    random = np.random.default_rng(seed)
    write_recipe(directory, corpus, seed, peak)
    ledger = Ledger(directory / records.LEDGER)
    ledger.append("start", step=0, corpus=manifest_hash(corpus))
    values, parent = weights(random), None
    for step in range(1, STEPS + 1):
        warm = min(1.0, step / 40)
        rate = peak * warm * (1.0 if step < 320 else 1 - (step - 320) / 90)
        norm = 0.4 + 2 * math.exp(-step / 20) + abs(random.normal(0, 0.05)) + (step == SPIKE_STEP) * 3
        loss = (
            2.6
            + 0.15 * seed
            + 1.6 * math.exp(-step / 90)
            + 2.4 * math.exp(-step / 15)
            + random.normal(0, 0.05)
        )
        with (directory / "metrics.jsonl").open("a") as file:
            line = {"step": step, "tokens": step * 4096, "loss": loss}
            line |= {"learning_rate": rate, "gradient_norm": norm, "memory_bytes": 612e6}
            line["tokens_per_second"] = 9100 + random.normal(0, 200)
            file.write(json.dumps(line) + "\n")
        values = {name: value + random.normal(0, rate / 20, value.shape) for name, value in values.items()}
        if step % EVERY == 0:
            write_state(directory, step, values)
            parent = write_checkpoint(directory, corpus, step, values, parent)
            ledger.append("checkpoint", step=step, checkpoint=parent, samples_seen=step * 32)
            evaluate(directory, step, 0.1 * seed)
            ledger.append("evaluation", step=step)
    ledger.append("stop", step=STEPS, reason="finished")
    return directory


def write_recipe(directory: Path, corpus: Path, seed: int, peak: float) -> None:
    """Write what was asked for, where each value came from, and on what it ran."""
    (directory / "run.toml").write_text(
        f'run_dir = "{directory}"\nseed = {seed}\n\n[corpus]\ndirectory = "{corpus.name}"\n\n'
        f'[model]\nhidden_size = {HIDDEN}\nnum_hidden_layers = {LAYERS}\nffn_sharing = "all"\n\n'
        f'[optimizer]\nname = "muon"\nlearning_rate = {peak}\n\n[sample]\nprompts = {json.dumps(PROMPTS)}\n'
    )
    origins = {
        "run_dir": "--set run_dir=runs/a", "seed": "default", "corpus.directory": "quickstart.toml:4",
        "model.hidden_size": "quickstart.toml:8", "model.num_hidden_layers": "quickstart.toml:9",
        "model.ffn_sharing": "default", "optimizer.name": "quickstart.toml:14",
        "optimizer.learning_rate": "quickstart.toml:15", "sample.prompts": "quickstart.toml:20",
    }  # fmt: skip
    (directory / "origins.json").write_text(json.dumps(origins))
    (directory / "environment.json").write_text(json.dumps(environment()))
    (directory / "plan.json").write_text(json.dumps({"total_steps": STEPS, "threads": 1}))


def write_state(directory: Path, step: int, values: dict[str, np.ndarray]) -> None:
    """Write the state that a resume needs, keeping only the newest two."""
    folder = directory / "states" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    moments = {f"momentum.{name}": ("F32", 0 * value.astype(np.float32)) for name, value in values.items()}
    write_safetensors(folder / "state.safetensors", moments)
    write_manifest(folder, "state", step=step)
    for old in sorted((directory / "states").iterdir())[:-2]:
        shutil.rmtree(old)


def write_checkpoint(
    directory: Path, corpus: Path, step: int, values: dict[str, np.ndarray], parent: str | None
) -> str:
    """Write one checkpoint as training does and return its manifest's hash."""
    folder = directory / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    stored = {name: ("BF16", bf16(value)) for name, value in values.items()}
    write_safetensors(folder / "model.safetensors", stored)
    config = {
        "model_type": "mobillama", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "ffn_of_layer": [0] * LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return write_manifest(
        folder,
        "checkpoint",
        step=step,
        total_steps=STEPS,
        world_size=1,
        samples_seen=step * 32,
        tokens_seen=step * 4096,
        run=directory.name,
        parent=parent,
        corpus=manifest_hash(corpus),
        source={"commit": "c0ffee" * 6 + "c0ff", "dirty": False},
    )


def evaluate(directory: Path, step: int, worse: float) -> None:
    """Append one held-out evaluation, two after the last step, and one sample a prompt."""
    subsets = {}
    for name, floor in SUBSETS.items():
        bits = floor + worse + 2.2 * math.exp(-step / 110)
        subsets[name] = {"nats_per_token": bits * 2.1, "bits_per_byte": bits}
    for whole in (False, True) if step == STEPS else (False,):
        line = {"step": step, "whole": whole, "subsets": subsets}
        append_line(directory / "evaluations.jsonl", json.dumps(line))
    words = "the value of a name is returned when it exists; <b>else</b> None & an error\n    return self"
    for prompt in PROMPTS:
        text = words[: 20 + step // 8]
        append_line(directory / "samples.jsonl", json.dumps({"step": step, "prompt": prompt, "text": text}))
