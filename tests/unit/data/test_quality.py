"""Filters: what each measures, by hand, and the reason it gives."""

from types import SimpleNamespace

import pytest
from datatrove.data import Document

from mobillama.core.errors import UserError
from mobillama.data import quality
from mobillama.data.minhash import shingles
from mobillama.data.recipe import FilterSection


def judge(text: str, **filters: object) -> quality.Reason | None:
    """Return why a text is dropped."""
    section = FilterSection.model_validate(filters)
    return quality.reason_to_drop(Document(text=text, id="x"), shingles(text.encode()), section)


def test_repeated_lines_are_counted_by_their_characters():
    assert quality.duplicate_lines("ab\ncd\nab\n\n  ab \nefgh") == pytest.approx(4 / 12)
    assert quality.duplicate_lines("\n \n") == 0
    assert judge("a line that comes twice\n" * 2, min_bytes=1) is None
    assert judge("a line that comes thrice\n" * 3, min_bytes=1, max_duplicate_ngrams=1) == (
        "repeated_lines",
        "0.667 of the text, at most 0.5 wanted",
    )


def test_repeated_ngrams_are_counted_in_running_text():
    assert quality.duplicate_ngrams(shingles(b"a b c d a b c d")) == 0
    # 16 words make 12 five-grams, of which only the first 4 are new.
    looped = " ".join(["one two three four"] * 4)
    assert quality.duplicate_ngrams(shingles(looped.encode())) == pytest.approx(8 / 12)
    assert judge(looped, min_bytes=1)[0] == "repeated_ngrams"


def test_length_is_in_bytes_of_utf8():
    assert judge("äöü", min_bytes=6) is None
    assert judge("äöü", min_bytes=7) == ("too_short", "6 bytes, at least 7 wanted")


def test_languages_are_kept_by_name_and_certainty(monkeypatch: pytest.MonkeyPatch):
    answers = {"sure": ("en", 0.9), "unsure": ("en", 0.3), "fremd": ("de", 0.99)}
    model = SimpleNamespace(predict=lambda document: (answers[document.text], {}))
    monkeypatch.setattr(quality, "_language_model", lambda: model)
    assert judge("sure", min_bytes=1, languages=["en", "fr"]) is None
    assert judge("unsure", min_bytes=1, languages=["en"]) == ("language", "en with 0.30")
    assert judge("fremd", min_bytes=1, languages=["en"]) == ("language", "de with 0.99")


def test_a_missing_language_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quality, "find_spec", lambda name: None)
    quality._language_model.cache_clear()
    with pytest.raises(UserError, match="pip install fasttext-numpy2-wheel"):
        judge("some text", min_bytes=1, languages=["en"])
