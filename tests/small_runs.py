"""Runs of seconds, trained by the real loop on corpora of a few documents."""

import random
from pathlib import Path
from typing import Any

from small_corpora import make_corpus, sentences

from mobillama.core import config
from mobillama.data import Corpus
from mobillama.train.recipe import Recipe

MODEL = {
    "preset": "tiny",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def toy_corpus(folder: Path) -> Corpus:
    """Prepare a corpus of two subsets with some hundred short documents."""
    source = random.Random(5)
    return make_corpus(folder, {"web": sentences(source, 80), "book": sentences(source, 40)})


def toy_recipe(folder: Path, **train: Any) -> config.Loaded[Recipe]:
    """Return a recipe of a run in ``folder / "run"`` on the corpus in ``folder / "corpus"``."""
    values = {
        "name": "toy",
        "seed": 7,
        "run_dir": folder / "run",
        "corpus": {
            "directory": folder / "corpus",
            "subsets": [{"name": "web", "kind": "stdlib", "part": "docs"}],
        },
        "data": {"sequence_length": 16, "epochs": {"web": 1.5, "book": 0.7}},
        "model": MODEL,
        "train": {
            "batch_tokens": 128,
            "micro_batch": 4,
            "max_steps": 12,
            "precision": "fp32",
            "threads": 1,
            "schedule": {"batch_ramp_steps": 4, "warmup_steps": 2},
            **train,
        },
        "checkpoint": {"count": 4, "keep_states": 9},
    }
    return config.Loaded(Recipe.model_validate(values), {})
