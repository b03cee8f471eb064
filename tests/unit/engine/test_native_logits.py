"""The engine's logits against a NumPy model of the same arithmetic."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_reference import ModelFile, TinyShape, reference_logits, token_errors

from mobillama.engine import native

# The reference sums in float64 and rounds where the engine rounds: int8 blocks of activations and the KV
# cache. Most tokens then differ by float32 sums alone. Where an activation lies on a rounding border, the two
# may take different sides; in models as small as these one such step moves a token, and those that attend to
# it, by 1 %. So of several models one must agree in full, and all must agree to within such steps.
SUMS = 1e-4
ROUNDING = 8e-2
SEEDS = (0, 1, 3)
TOKENS = np.array([5, 17, 3, 99, 5, 64, 1, 0, 42, 77, 12, 13, 14, 15, 16, 98, 97, 96, 2, 3], np.int32)

SHARED = TinyShape()
EVERYTHING = TinyShape(delta_rank=5, gains=True, ffn_of_layer=(0, 1))
SHAPES = {
    "one FFN": SHARED,
    "no sharing": TinyShape(ffn_of_layer=(0, 1, 2)),
    "sandwich": TinyShape(ffn_of_layer=(0, 1, 0)),
    "deltas": TinyShape(delta_rank=5),
    "deltas and gains": TinyShape(delta_rank=16, gains=True, ffn_of_layer=(0, 1, 0)),
    "tied": TinyShape(tied=True),
    "multi-head": TinyShape(key_value_heads=4),
    "head size 16": TinyShape(hidden_size=64, heads=4, key_value_heads=2, head_dim=16),
    "head size 80": TinyShape(hidden_size=160, heads=2, key_value_heads=2, head_dim=80),
    "head size 128": TinyShape(hidden_size=128, heads=2, key_value_heads=1, head_dim=128),
    "odd vocabulary": TinyShape(vocab_size=103),
}


def logits_of(path: Path, **options: Any) -> np.ndarray:
    return native.Model(path, **options).session().forward(TOKENS, all_logits=True)


def assert_follows_file(folder: Path, shape: TinyShape, types: str, **options: Any) -> None:
    kv_type = options.setdefault("kv_type", "f16")
    errors: list[np.ndarray] = []
    for seed in SEEDS:
        file = ModelFile.random(shape, types=types, seed=seed)
        actual = logits_of(file.write(folder / "m.gguf"), **options)
        errors.append(token_errors(actual, reference_logits(file, TOKENS, kv_type=kv_type)))
    assert min(np.median(error) for error in errors) < SUMS
    assert np.max(errors) < ROUNDING


@pytest.mark.parametrize("name", SHAPES)
def test_logits_follow_the_file_for_every_shape(tmp_path: Path, name: str) -> None:
    assert_follows_file(tmp_path, SHAPES[name], "q4_0")


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("types", ["q4_0", "q8_0", "f16", "mixed"])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_logits_follow_the_file_on_every_instruction_set(
    tmp_path: Path, isa: str, types: str, kv_type: str
) -> None:
    assert_follows_file(tmp_path, EVERYTHING, types, isa=isa, kv_type=kv_type)


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_logits_do_not_depend_on_how_the_tokens_are_batched(
    tmp_path: Path, isa: str, kv_type: native.KvType
) -> None:
    path = ModelFile.random(EVERYTHING, types="mixed").write(tmp_path / "m.gguf")
    model = native.Model(path, kv_type=kv_type, isa=isa)
    tokens = np.tile(TOKENS, 16)  # crosses batches of 64 and a chunk of 256 positions
    whole = model.session().forward(tokens, all_logits=True)
    for sizes in ((1,) * tokens.size, (63, 1, 2, 64, 65, 100, 25), (3, 317)):
        session = model.session()
        parts = np.split(tokens, list(itertools.accumulate(sizes))[:-1])
        split = np.concatenate([session.forward(part, all_logits=True) for part in parts])
        assert np.array_equal(split, whole)


def test_the_last_token_s_logits_are_those_of_all(tmp_path: Path) -> None:
    path = ModelFile.random(EVERYTHING, types="mixed").write(tmp_path / "m.gguf")
    model = native.Model(path)
    every = model.session().forward(TOKENS, all_logits=True)
    last = model.session().forward(TOKENS)
    assert last.shape == (SHARED.vocab_size,)
    assert np.array_equal(last, every[-1])


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_thread_count_follows_the_file_and_repeats_its_bits(tmp_path: Path, threads: int) -> None:
    assert_follows_file(tmp_path, TinyShape(key_value_heads=4, delta_rank=5), "q4_0", threads=threads)
    path = tmp_path / "m.gguf"
    assert np.array_equal(logits_of(path, threads=threads), logits_of(path, threads=threads))


def test_embeddings_in_place_of_tokens_give_the_same_logits(tmp_path: Path) -> None:
    file = ModelFile.random(SHARED, types="f16")
    model = native.Model(file.write(tmp_path / "m.gguf"))
    embeddings = file.tensors["token_embd.weight"].values[TOKENS].astype(np.float32)
    assert np.array_equal(
        model.session().forward_embeddings(embeddings, all_logits=True),
        model.session().forward(TOKENS, all_logits=True),
    )
