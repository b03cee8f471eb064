"""A toy corpus and recipe that train in a second, and a way to run them as a user would."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

WORDS = "the a one small large model layer shares learns reads writes every token again and then".split()  # noqa: SIM905

RECIPE = """
name = "toy"
seed = 3
run_dir = "{folder}/run"

[corpus]
directory = "{folder}/corpus"
root = "{folder}"
heldout_bytes = 3000
workers = 1
tokenizer = {{ vocab_size = 300 }}
deduplication = {{ near = false }}
filters = {{ min_bytes = 10, max_duplicate_lines = 1.0, max_duplicate_ngrams = 1.0 }}

[[corpus.subsets]]
name = "left"
kind = "jsonl"
paths = ["left.jsonl"]
license = "CC0-1.0"

[[corpus.subsets]]
name = "right"
kind = "jsonl"
paths = ["right.jsonl"]
license = "CC0-1.0"

[data]
sequence_length = 32
weights = {{ left = 0.7, right = 0.3 }}

[model]
preset = "tiny"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 3
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 64

[train]
batch_tokens = 256
micro_batch = 4
max_steps = 20
threads = 1

[train.optimizer]
kind = "muon"
lr = 4e-3
muon_lr = 8e-3

[train.schedule]
kind = "wsd"
warmup_steps = 2

[checkpoint]
count = 4
keep_states = 2

[evaluate]
bytes = 1000

[sample]
prompts = ["the model"]
tokens = 4
"""


def write_toy(folder: Path) -> Path:
    """Write documents and a recipe below ``folder``; return the recipe."""
    chance = random.Random(5)
    for subset in ("left", "right"):
        lines = (" ".join(chance.choices(WORDS, k=60)) + f" {subset}." for _ in range(100))
        (folder / f"{subset}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    recipe = folder / "toy.toml"
    recipe.write_text(RECIPE.format(folder=folder))
    return recipe


def command(verb: str, recipe: Path, *overrides: str) -> list[str]:
    """Return the command line of a verb on a recipe."""
    return [sys.executable, "-m", "mobillama", verb, str(recipe), *(f"--set={text}" for text in overrides)]


def run(verb: str, recipe: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process of its own and return what it printed."""
    return subprocess.run(
        command(verb, recipe, *overrides), capture_output=True, text=True, env=environment()
    )


def environment() -> dict[str, str]:
    """Return the environment of child processes: one thread each."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
