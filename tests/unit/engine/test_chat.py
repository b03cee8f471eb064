import pytest
from toy import ToySession, byte_tokenizer

from mobillama.core.errors import UserError
from mobillama.engine.chat import Conversation
from mobillama.engine.generation import GenerationOptions
from mobillama.engine.language_model import LanguageModel
from mobillama.engine.sampling import GREEDY

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
OPTIONS = GenerationOptions(sampling=GREEDY, max_tokens=5)


def model(template: str | None = TEMPLATE, context_length: int = 400) -> LanguageModel:
    return LanguageModel("toy", byte_tokenizer(), lambda: ToySession(260, context_length), template)


def test_a_conversation_goes_on_with_the_answer_in_it():
    conversation = Conversation.begin(model(), OPTIONS, system="be kind")
    answer = "".join(event.text for event in conversation.ask("hello")).strip()
    assert [message["content"] for message in conversation.messages] == ["be kind", "hello", answer]
    conversation.forget()
    assert [message["role"] for message in conversation.messages] == ["system"]


def test_the_second_question_computes_only_what_is_new():
    chatted = model()
    conversation = Conversation.begin(chatted, OPTIONS, system="long " * 20)
    list(conversation.ask("hello"))
    first = sum(chatted.cache.session.passes)
    list(conversation.ask("again"))
    assert sum(chatted.cache.session.passes) - first < first / 2


def test_a_question_that_does_not_fit_is_forgotten():
    conversation = Conversation.begin(model(context_length=40), OPTIONS)
    with pytest.raises(UserError, match="context holds 40"):
        list(conversation.ask("x" * 100))
    assert conversation.messages == []


def test_models_without_a_template_get_a_plain_dialogue():
    plain = model(None)
    prompt = plain.chat_prompt([{"role": "user", "content": "hi"}])
    assert plain.tokenizer.decode(prompt) == "User: hi\nAssistant:"
