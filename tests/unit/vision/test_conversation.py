"""Conversations as tokens: answers and markers stand where a hand count puts them."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from mobillama.core.errors import UserError
from mobillama.vision.conversation import TEMPLATES, Conversation, with_image_token, with_markers

WORDS = [
    "<end>", "red", "what", "color", "?", "USER", "ASSISTANT", ":", "see", "and", "blue", "<", ">", "image",
]  # fmt: skip


def conversation(template="plain", tokens=3):
    numbers = {word: number for number, word in enumerate([*WORDS, "[?]"])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[?]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with_image_token(tokenizer)
    return Conversation(tokenizer.to_str(), TEMPLATES[template], "<end>", tokens)


def ids(*words):
    return [15 if word == "<image>" else WORDS.index(word) for word in words]


ASKED = [
    {"role": "user", "content": "<image>\nwhat color ?"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "and ?"},
    {"role": "assistant", "content": "blue"},
]


def test_only_answers_and_their_ends_count():
    spelled = conversation().spell(ASKED, images=1)
    assert spelled.ids.tolist() == ids(
        "<end>", "<image>", "what", "color", "?", "red", "<end>", "and", "?", "blue", "<end>"
    )
    assert spelled.answers.astype(int).tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1]


def test_a_prompt_is_the_beginning_of_what_is_trained_on():
    for template in TEMPLATES:
        spoken = conversation(template)
        whole = spoken.spell(ASKED[:2], images=1)
        prompt = spoken.prompt(ASKED[:1], tiles=[1])
        unexpanded = spoken.spell(ASKED[:1], images=1).ids.tolist()
        assert whole.ids.tolist()[: len(unexpanded)] == unexpanded
        assert not whole.answers[: len(unexpanded)].any() and whole.answers[len(unexpanded) :].all()
        assert prompt.count(15) == 3 and [i for i in prompt if i != 15] == [i for i in unexpanded if i != 15]


def test_each_image_takes_as_many_tokens_as_its_squares():
    spoken = conversation(tokens=2)
    two = [{"role": "user", "content": "<image> and <image> ?"}]
    assert spoken.prompt(two, tiles=[1, 3]) == ids("<end>", *["<image>"] * 2, "and", *["<image>"] * 6, "?")


@pytest.mark.parametrize(
    ("messages", "images", "said"),
    [
        ([{"role": "user", "content": "what ?"}], 1, "0 <image> markers for 1 images"),
        ([{"role": "user", "content": "<image> <image>"}], 1, "2 <image> markers for 1 images"),
        ([], 0, "0 messages"),
        ([{"role": "robot", "content": "see"}], 0, "role 'robot'"),
        ([{"role": "user", "content": None}], 0, "role 'user'"),
        ([{"role": "assistant", "content": "<image>"}], 1, "only the user shows images"),
    ],
)
def test_markers_and_messages_that_do_not_fit_are_told(messages, images, said):
    with pytest.raises(UserError, match=said):
        conversation().prompt(messages, tiles=[1] * images)


def test_text_cannot_spell_the_end_of_an_answer():
    spelled = conversation().spell([{"role": "user", "content": "see <end> ?"}], images=0)
    assert (spelled.ids == 0).sum() == 1  # the beginning alone
    with pytest.raises(UserError, match="U\\+E000"):
        conversation().spell([{"role": "user", "content": "see \ue001"}], images=0)


def test_a_caption_is_learnt_from_the_image_alone():
    spelled = conversation("caption").spell(ASKED[:2], images=1)
    assert spelled.ids.tolist() == ids("<end>", "<image>", "red", "<end>")
    assert spelled.answers.tolist() == [False, False, True, True]


def test_markers_are_put_in_front_unless_they_are_there():
    assert with_markers("what ?", 2) == "<image>\n<image>\nwhat ?"
    assert with_markers("what is <image> ?", 1) == "what is <image> ?"


def test_a_tokenizer_gains_one_last_token():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    assert with_image_token(tokenizer).token_to_id("<image>") == 2
    assert with_image_token(tokenizer).get_vocab_size() == 3
    assert np.isin(2, list(tokenizer.get_vocab().values()))
