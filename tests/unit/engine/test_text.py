import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import byte_tokenizer

from mobillama.engine.text import StopFilter, Utf8Stream

TOKENIZER = byte_tokenizer()


def cut(data: bytes, borders: list[int]) -> list[bytes]:
    edges = [0, *sorted({border % (len(data) + 1) for border in borders}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def stream(pieces: list[bytes], stops: list[str]) -> tuple[str, str | None]:
    characters, stop = Utf8Stream(), StopFilter(stops)
    shown = [stop.push(characters.push(piece)) for piece in pieces]
    shown += [stop.push(characters.flush()), stop.flush()]
    return "".join(shown), stop.stopped_by


@given(st.text(alphabet="ab👩‍🚀é\n#", max_size=30), st.lists(st.integers(0, 200), max_size=12))
def test_text_arrives_whole_however_its_bytes_are_cut(text, borders):
    assert stream(cut(text.encode(), borders), []) == (text, None)


@given(
    st.text(alphabet="ab👩é", max_size=30),
    st.lists(st.text(alphabet="ab👩é", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 200), max_size=12),
)
def test_stop_strings_are_found_across_any_borders_and_never_shown(text, stops, borders):
    ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    expected = (text, None)
    if ends:
        end, length, stop = min(ends)
        expected = (text[: end + length], stop)
    assert stream(cut(text.encode(), borders), stops) == expected


@given(st.text(alphabet="ab#", max_size=20))
def test_only_what_may_become_a_stop_string_is_held_back(text):
    stop = StopFilter(["##b"])
    shown = "".join(stop.push(character) for character in text)
    if stop.stopped_by is None:
        assert text.removeprefix(shown) in ("", "#", "##")


def test_an_emoji_split_between_tokens_is_shown_once_complete():
    characters = Utf8Stream()
    assert [characters.push(bytes([byte])) for byte in "🦙".encode()] == ["", "", "", "🦙"]


def test_bytes_that_never_become_a_character_give_a_replacement_at_the_end():
    characters = Utf8Stream()
    assert characters.push("é".encode()[:1]) == ""
    assert characters.flush() == "�"


@given(st.text(max_size=40))
def test_the_byte_level_tokenizer_spells_every_text(text):
    tokens = TOKENIZER.encode(text)
    assert TOKENIZER.decode(tokens) == text
    assert TOKENIZER.backend.decode(tokens) == text


def test_control_tokens_add_no_text():
    assert TOKENIZER.decode(TOKENIZER.encode("hello<|end|> w")) == "hello w"
    assert TOKENIZER.token_bytes(10_000) == b""


@pytest.mark.parametrize(("piece", "expected"), [("<0xF0>", b"\xf0"), ("▁the", b" the"), ("ing", b"ing")])
def test_sentencepiece_tokens_are_spelt_with_spaces_and_byte_fallback(piece, expected):
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    from mobillama.engine.tokenizer import Tokenizer

    backend = Backend(models.BPE({"<0xF0>": 0, "▁the": 1, "ing": 2}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(backend.to_str(), frozenset())
    assert tokenizer.token_bytes(backend.token_to_id(piece)) == expected
