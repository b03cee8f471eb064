import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import ToySession

from mobillama.core.errors import UserError
from mobillama.engine.prefix import PREFILL_TOKENS, PrefixCache, StoppedError

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
    (tmp_path / "prefix" / "prefix.json").write_text('{"tokens": [1, 2], "model": "weights"}')
    with pytest.raises(UserError, match="do not belong together"):
        cache.load(tmp_path / "prefix", "weights")
    (tmp_path / "prefix" / "prefix.json").write_text("{")
    with pytest.raises(UserError, match="not a saved prompt cache"):
        cache.load(tmp_path / "prefix", "weights")


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
