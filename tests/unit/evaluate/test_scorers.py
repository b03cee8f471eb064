"""Every way of scoring gives the log-likelihoods of the whole sequences, one at a time."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from mobillama.evaluate import torch_scorer
from mobillama.evaluate.questions import Continuation
from mobillama.evaluate.session_scorer import SessionScorer
from mobillama.evaluate.torch_scorer import TorchScorer
from mobillama.model import MobiLlamaConfig, MobiLlamaForCausalLM, TorchSession

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
}
TOLERANCE = 2e-5


def make(kind):
    """Return a small random model whose logits differ enough to tell sequences apart."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=VOCABULARY, n_positions=96, n_embd=32, n_layer=2, n_head=4)
        return GPT2LMHeadModel(config).eval()
    if kind == "window":
        return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)).eval()
    classes = {"llama": (LlamaConfig, LlamaForCausalLM), "ours": (MobiLlamaConfig, MobiLlamaForCausalLM)}
    config, model = classes[kind]
    return model(config(**SIZES)).eval()


def make_questions(header=0):
    """Return questions of all shapes: one-token answers, answers that begin alike, different contexts."""
    source = torch.Generator().manual_seed(3)

    def some(count):
        return tuple(torch.randint(VOCABULARY, (count,), generator=source).tolist())

    shared = some(header)
    questions = []
    for length in (1, 5, 23):
        context = shared + some(length)
        questions.append([Continuation((*context, token), 1) for token in (3, 4, 5, 6)])
        start = some(3)
        answers = [start + some(size) for size in (1, 4, 7)]
        questions.append([Continuation(context + answer, len(answer)) for answer in answers])
        end = some(4)
        questions.append([Continuation(context + some(size) + end, len(end)) for size in (1, 2)])
    return questions


@torch.inference_mode()
def one_by_one(model, questions):
    """Return (log-likelihood, greedy) of every continuation by a plain forward of its own."""
    results = []
    for question in questions:
        for continuation in question:
            logits = model(torch.tensor([continuation.tokens])).logits[0].double().log_softmax(-1)
            logits = logits[:-1][-continuation.scored :]
            targets = torch.tensor(continuation.tokens[-continuation.scored :])
            results.append(
                (float(logits.gather(1, targets[:, None]).sum()), bool((logits.argmax(1) == targets).all()))
            )
    return results


def flat(scores):
    return [(score.loglikelihood, score.greedy) for question in scores for score in question]


def assert_equal_scores(found, expected):
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=TOLERANCE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("kind", ["ours", "llama", "gpt2", "window"])
@pytest.mark.parametrize("header", [0, 40])
def test_shared_beginnings_do_not_change_scores(kind, header):
    model, questions = make(kind), make_questions(header)
    scorer = TorchScorer(model)
    assert scorer.shares is (kind != "window")
    assert_equal_scores(flat(scorer.score(questions)), one_by_one(model, questions))
    # Again, now with the header's cache from before.
    assert_equal_scores(flat(scorer.score(questions[2:])), one_by_one(model, questions[2:]))


def test_batches_of_any_size_give_the_same(monkeypatch):
    model, questions = make("ours"), make_questions()
    expected = one_by_one(model, questions)
    for tokens in (1, 50):
        monkeypatch.setattr(torch_scorer, "CPU_BATCH_TOKENS", tokens)
        assert_equal_scores(flat(TorchScorer(model).score(questions)), expected)


def test_a_model_whose_branches_would_differ_is_read_sequence_by_sequence():
    model = make("ours")
    forward = model.model.forward

    def without_masks(*args, attention_mask=None, **kwargs):
        return forward(*args, **kwargs)

    model.model.forward = without_masks
    scorer = TorchScorer(model)
    assert not scorer.shares
    questions = make_questions()
    alone = [[continuation] for question in questions for continuation in question][:1]
    assert_equal_scores(flat(scorer.score(alone)), one_by_one(model, alone))


@pytest.mark.parametrize("header", [0, 40])
def test_a_session_gives_the_same(header):
    model, questions = make("ours"), make_questions(header)
    scorer = SessionScorer(TorchSession(model))
    assert_equal_scores(flat(scorer.score(questions)), one_by_one(model, questions))


def test_a_session_reads_what_questions_share_once():
    model, questions = make("ours"), make_questions(40)
    session, read = TorchSession(model), []
    forward = session.forward
    session.forward = lambda tokens, **options: (read.append(len(tokens)), forward(tokens, **options))[1]
    SessionScorer(session).score(questions)
    whole = sum(len(continuation.inputs) for question in questions for continuation in question)
    assert sum(read) < whole / 5
