from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_reference import ModelFile, TinyShape
from toy import ToySession, byte_tokenizer

from mobillama.core.errors import UserError
from mobillama.core.records import write_manifest
from mobillama.engine import GREEDY, GenerationOptions, native
from mobillama.engine.generation import generate
from mobillama.engine.prefix import PREFILL_TOKENS, PrefixCache, StoppedError
from mobillama.engine.speculation import PromptLookup

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(st.lists(TOKENS, min_size=1, max_size=5))
def test_a_cached_prefix_gives_the_same_logits_as_a_fresh_session(prompts):
    cache = PrefixCache(ToySession(8))
    for prompt in prompts:
        assert (cache.prefill(prompt) == PrefixCache(ToySession(8)).prefill(prompt)).all()
        assert cache.tokens == cache.session.tokens == prompt


def test_only_the_new_end_of_a_prompt_is_computed():
    session = ToySession(8)
    cache = PrefixCache(session)
    cache.prefill([1, 2, 3, 4])
    cache.prefill([1, 2, 3, 5, 6])
    cache.prefill([1, 2, 3, 5, 6])
    assert session.passes == [4, 2, 1]


def test_a_long_prompt_can_be_stopped_and_taken_up_again():
    session = ToySession(8, 4 * PREFILL_TOKENS)
    cache = PrefixCache(session)
    prompt = [1, 2] * PREFILL_TOKENS
    answers = iter([False, True])
    with pytest.raises(StoppedError):
        cache.prefill(prompt, lambda: next(answers))
    assert cache.position == PREFILL_TOKENS
    cache.prefill(prompt)
    assert session.passes == [PREFILL_TOKENS, PREFILL_TOKENS]


def test_saved_and_loaded_it_continues_without_computing_again(tmp_path):
    cache = PrefixCache(ToySession(8))
    expected = cache.prefill([1, 2, 3])
    cache.save(tmp_path / "prefix", "weights")
    other = PrefixCache(ToySession(8))
    other.load(tmp_path / "prefix", "weights")
    assert (other.prefill([1, 2, 3]) == expected).all()
    assert other.session.passes == [1]


def test_other_weights_and_damage_are_refused(tmp_path):
    cache = PrefixCache(ToySession(8))
    cache.prefill([1, 2, 3])
    cache.save(tmp_path / "prefix", "weights")
    with pytest.raises(UserError, match="other weights"):
        cache.load(tmp_path / "prefix", "different")
    write_manifest(tmp_path / "prefix", "prompt cache", model="weights", tokens=[1, 2])
    with pytest.raises(UserError, match="do not belong together"):
        cache.load(tmp_path / "prefix", "weights")
    (tmp_path / "prefix" / "session.kv").write_bytes(b"other")
    with pytest.raises(UserError, match=r"session\.kv: .* recorded"):
        cache.load(tmp_path / "prefix", "weights")
    with pytest.raises(UserError, match=r"no manifest\.json here"):
        cache.load(tmp_path, "weights")


def test_a_pass_that_fails_leaves_tokens_and_session_in_step():
    class Failing(ToySession):
        def forward(self, tokens, all_logits=False):
            result = super().forward(tokens, all_logits)
            if 7 in tokens:
                raise KeyboardInterrupt
            return result

    cache = PrefixCache(Failing(8))
    cache.prefill([1, 2])
    with pytest.raises(KeyboardInterrupt):
        cache.forward([7])
    assert cache.tokens == cache.session.tokens == [1, 2]


class EngineWithImages:
    """A tiny device file, and the embeddings of its tokens as what an image might give."""

    def __init__(self, folder: Path):
        file = ModelFile.random(TinyShape(vocab_size=260), types="f16")
        self.model = native.Model(file.write(folder / "m.gguf"), context=64)
        self.table = file.tensors["token_embd.weight"].values.astype(np.float32)

    def cache(self) -> PrefixCache:
        return PrefixCache(self.model.session())


def test_embeddings_among_tokens_give_the_logits_of_their_tokens(tmp_path: Path) -> None:
    engine = EngineWithImages(tmp_path)
    cache = engine.cache()
    prompt = [5, *cache.embed(engine.table[[17, 3, 99]]), 42, *cache.embed(engine.table[[7]])]
    expected = engine.model.session().forward(np.array([5, 17, 3, 99, 42, 7], np.int32))
    assert np.array_equal(cache.prefill(prompt), expected)


def test_the_same_image_is_a_known_prefix_and_another_is_not(tmp_path: Path) -> None:
    engine = EngineWithImages(tmp_path)
    cache = engine.cache()
    image, other = engine.table[[17, 3, 99]], engine.table[[17, 4, 99]]
    cache.prefill([5, *cache.embed(image), 42])
    assert cache.common_prefix([5, *cache.embed(image.copy()), 7]) == 4
    assert cache.common_prefix([5, *cache.embed(other), 42]) == 2


@pytest.mark.parametrize("speculate", [False, True])
def test_an_answer_about_an_image_goes_on_through_context_shifts(tmp_path: Path, speculate: bool) -> None:
    engine = EngineWithImages(tmp_path)
    options = GenerationOptions(max_tokens=150, sampling=GREEDY, context_shift=True, speculate=speculate)
    tokens = [5, 17, 3, 99, 3, 99, 3, 99, 42]
    endless = replace(byte_tokenizer(), end_tokens=frozenset())

    def answer(cache: PrefixCache, prompt: list[int]) -> list[int | None]:
        return [event.token for event in generate(cache, endless, prompt, options)]

    cache = engine.cache()
    image = cache.embed(engine.table[tokens[1:-1]])
    expected = answer(engine.cache(), tokens)
    assert len(expected) > 100
    assert answer(cache, [tokens[0], *image, tokens[-1]]) == expected


def test_ids_that_nobody_embedded_and_sessions_without_eyes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="token -7"):
        EngineWithImages(tmp_path).cache().prefill([1, -7])
    with pytest.raises(UserError, match="takes text only"):
        PrefixCache(ToySession(8)).embed(np.zeros((1, 4), np.float32))


def test_guesses_end_where_an_image_begins() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 4, -9, 5, 1, 2, 3])
    assert lookup.propose(8) == [4]
