import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import END, ToySession, byte_tokenizer

from mobillama.core.errors import UserError
from mobillama.engine.constraints import json_schema, regex
from mobillama.engine.generation import GenerationOptions, generate
from mobillama.engine.prefix import PrefixCache
from mobillama.engine.sampling import GREEDY, Sampling
from mobillama.engine.speculation import PromptLookup

TOKENIZER = byte_tokenizer()


class Scripted(ToySession):
    """A session whose likeliest tokens follow a script, counted from a position on."""

    def __init__(self, script: list[int], start: int, **options):
        super().__init__(**options)
        self.script, self.start = script, start

    def logits_at(self, end: int) -> np.ndarray:
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[self.script[min(end - self.start, len(self.script) - 1)]] = 9.0
        return logits


def answer(script: bytes | list[int], prompt: str = "hi", **options):
    session = Scripted([*script], len(TOKENIZER.encode(prompt)), context_length=options.pop("context", 64))
    options.setdefault("sampling", GREEDY)
    events = list(
        generate(PrefixCache(session), TOKENIZER, TOKENIZER.encode(prompt), GenerationOptions(**options))
    )
    assert [event.finish is not None for event in events] == [False] * (len(events) - 1) + [True]
    return "".join(event.text for event in events), events[-1].finish, events


def test_the_end_token_stops_the_answer_and_is_not_shown():
    assert answer([*b"yes", END, *b"more"])[:2] == ("yes", "stop")


def test_max_tokens_ends_with_length():
    assert answer(b"abcdef", max_tokens=4)[:2] == ("abcd", "length")


def test_a_stop_string_over_token_borders_ends_the_answer_before_it():
    assert answer("so 🦙 END x".encode(), stop=["END"], max_tokens=40)[:2] == ("so 🦙 ", "stop_string")


def test_a_beginning_of_a_stop_string_is_shown_when_the_answer_ends():
    assert answer([*b"so EN", END], stop=["END"])[:2] == ("so EN", "stop")


def test_a_full_context_says_so():
    text, finish, _ = answer(b"x" * 50, context=10)
    # Two prompt tokens leave room for eight; the ninth token needs no room, as nothing follows it.
    assert (text, finish) == ("x" * 9, "context")


def test_context_shift_goes_on_after_the_context_is_full():
    assert answer(b"x" * 50, context=10, context_shift=True, max_tokens=40)[:2] == ("x" * 40, "length")


def test_interruption_ends_the_answer_and_keeps_what_was_said():
    session = Scripted([*b"abcdef"], 2)
    asked = itertools.count()
    # The first question comes before the prompt is read.
    events = list(
        generate(
            PrefixCache(session),
            TOKENIZER,
            [1, 2],
            GenerationOptions(sampling=GREEDY),
            lambda: next(asked) >= 3,
        )
    )
    assert ("".join(event.text for event in events), events[-1].finish) == ("abc", "interrupted")


def test_logprobs_are_those_of_the_model_not_of_the_sampler():
    _, _, events = answer(b"abc", max_tokens=1, logprobs=2, sampling=Sampling(0.01, top_k=1))
    expected = 9.0 - np.log(np.exp(9.0) + 259)
    assert events[0].logprob == pytest.approx(expected, abs=1e-4)
    assert [alternative.token for alternative in events[0].alternatives] == [ord("a"), 0]


@pytest.mark.parametrize(("prompt", "says"), [([], "empty"), ([1] * 65, "context holds 64"), ([999], "999")])
def test_prompts_that_cannot_be_read_are_explained(prompt, says):
    with pytest.raises(UserError, match=says):
        list(generate(PrefixCache(ToySession()), TOKENIZER, prompt, GenerationOptions()))


def tokens_of(session: ToySession, prompt: list[int], **options) -> list[int]:
    chosen = GenerationOptions(max_tokens=100, **options)
    events = generate(PrefixCache(session), byte_tokenizer_without_end(), prompt, chosen)
    return [event.token for event in events if event.token is not None]


def byte_tokenizer_without_end():
    from dataclasses import replace

    return replace(TOKENIZER, end_tokens=frozenset())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
    st.integers(0, 100),
    st.sampled_from([0.0, 1e-4, 0.05, 0.5]),
    st.sampled_from([GREEDY, Sampling(0, repetition_penalty=1.3), Sampling(0, presence_penalty=0.7)]),
    st.sampled_from([24, 80]),
    st.booleans(),
)
def test_speculation_equals_plain_greedy_decoding(prompt, seed, noise, sampling, context, shift):
    def session() -> ToySession:
        return ToySession(8, context, seed=seed, noise=noise)

    plain = tokens_of(session(), prompt, sampling=sampling, context_shift=shift)
    assert tokens_of(session(), prompt, sampling=sampling, context_shift=shift, speculate=True) == plain


def test_speculation_takes_several_tokens_a_pass_where_the_text_repeats():
    session = ToySession(5, 200, seed=2)
    session.table = session.table[:3]
    tokens_of(session, [1, 2, 3], sampling=GREEDY, speculate=True)
    assert len(session.passes) < 40  # for 100 tokens


def test_speculation_leaves_nothing_in_the_cache_that_plain_decoding_would_not_hold():
    session = ToySession(5, 200, seed=2, noise=1e-4)
    session.table = session.table[:3]
    tokens_of(session, [1, 2, 3], sampling=GREEDY, speculate=True)
    assert max(session.passes[1:]) > 1
    assert session.position >= 3 and not any(session.history_noise[3:])


def test_speculation_needs_greedy_decoding():
    with pytest.raises(UserError, match="temperature"):
        GenerationOptions(sampling=Sampling(1.0), speculate=True)


def test_lookup_proposes_what_followed_the_latest_occurrence():
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 1, 2, 3])
    assert lookup.propose(3) == [5, 6, 1]
    assert lookup.propose(0) == []


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(6))
def test_a_schema_gives_valid_json(seed):
    options = GenerationOptions(
        sampling=Sampling(1.0, seed=seed), constraint=json_schema(json.dumps(SCHEMA)), max_tokens=200
    )
    session = ToySession(260, 256, seed=seed)
    events = list(generate(PrefixCache(session), TOKENIZER, [5, 6], options))
    assert events[-1].finish == "stop"
    value = json.loads("".join(event.text for event in events))
    assert value.keys() == {"name", "age"}
    assert 0 <= value["age"] <= 99 and len(value["name"]) <= 6


def test_a_regular_expression_is_matched_as_a_whole_also_when_speculating():
    for speculate in (False, True):
        options = GenerationOptions(
            sampling=GREEDY, constraint=regex(r"(ab|cd){3}[0-9]{2}"), speculate=speculate
        )
        text = "".join(event.text for event in generate(PrefixCache(ToySession()), TOKENIZER, [1], options))
        assert re.fullmatch(r"(ab|cd){3}[0-9]{2}", text)


@pytest.mark.parametrize("make", [lambda: regex("(unclosed"), lambda: json_schema('{"type": "nonsense"}')])
def test_constraints_that_make_no_sense_are_explained(make):
    with pytest.raises(UserError, match="constraint"):
        list(generate(PrefixCache(ToySession()), TOKENIZER, [1], GenerationOptions(constraint=make())))


def test_a_schema_file_that_is_absent_is_named():
    with pytest.raises(UserError, match="absent"):
        json_schema("absent.json")
