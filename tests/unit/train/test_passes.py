import copy

import pytest
import torch
from torch.nn import functional

from mobillama.model import MobiLlamaConfig, MobiLlamaForCausalLM
from mobillama.train import attention, objectives, parallel, precision
from mobillama.train.objectives import IGNORED, CrossEntropy, HeadLoss, NextToken
from mobillama.train.optimizers import build
from mobillama.train.recipe import OptimizerSection
from mobillama.train.state import TrainingState


@pytest.fixture
def state():
    torch.manual_seed(0)
    config = MobiLlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        ffn_of_layer=[0, 0, 0],
        initializer_range=0.1,
    )
    model = MobiLlamaForCausalLM(config).train()
    return TrainingState(model, build(model, OptimizerSection()), parallel.World())


@pytest.fixture
def batch():
    tokens = torch.randint(0, 300, (3, 25), generator=torch.Generator().manual_seed(1))
    return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:].clone()}


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [(), (7, 8, 49)])
def test_head_loss_in_blocks_is_cross_entropy_of_all_logits(monkeypatch, z_loss, ignored):
    monkeypatch.setattr(objectives, "CPU_BLOCK", 300 * 16)  # 50 positions in 4 blocks, the last one short
    torch.manual_seed(0)
    states = torch.randn(50, 16, requires_grad=True)
    head = torch.randn(300, 16, requires_grad=True)
    labels = torch.randint(0, 300, (50,))
    labels[list(ignored)] = IGNORED
    ours = HeadLoss.apply(states, head, CrossEntropy(labels, z_loss))
    logits = states @ head.T
    squares = torch.logsumexp(logits, -1)[labels != IGNORED].square()
    plain = functional.cross_entropy(logits, labels, reduction="sum") + z_loss * squares.sum()
    torch.testing.assert_close(ours, plain)
    # A factor behind the loss, as gradient accumulation has.
    for got, expected in zip(
        torch.autograd.grad(0.3 * ours, (states, head)),
        torch.autograd.grad(0.3 * plain, (states, head)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_short_attention_is_causal_attention(state, batch):
    plain = state.model
    short = copy.deepcopy(plain)
    short.set_attn_implementation(attention.SHORT_CAUSAL)
    for model in (plain, short):
        NextToken()(model, batch)[0].backward()
    for (name, expected), got in zip(plain.named_parameters(), short.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=lambda _, n=name: n)


def test_short_attention_leaves_packed_documents_apart(state, batch):
    batch["position_ids"] = torch.cat([torch.arange(10), torch.arange(14)]).repeat(3, 1)
    short = copy.deepcopy(state.model)
    short.set_attn_implementation(attention.SHORT_CAUSAL)
    torch.testing.assert_close(NextToken()(short, batch)[0], NextToken()(state.model, batch)[0])


def test_passes_through_the_bf16_copy_give_the_fp32_gradient(state, batch):
    NextToken()(state.model, batch)[0].backward()
    exact = [weight.grad.clone() for weight in state.model.parameters()]
    state.model.zero_grad()
    passes, _ = precision.passes(state, "bf16")
    assert isinstance(passes, precision.CopyPasses)
    passes.begin()
    for _ in range(2):  # two micro-batches add up
        passes.forward(NextToken(), batch).backward()
        passes.collect()
    for weight, expected in zip(state.model.parameters(), exact, strict=True):
        assert weight.grad.dtype == torch.float32
        gap = (weight.grad - 2 * expected).norm() / (2 * expected).norm()
        assert gap < 0.03  # bf16 has 8 bits


def test_the_bf16_copy_follows_the_weights(state, batch):
    passes, copied = precision.passes(state, "bf16")
    with torch.no_grad():
        state.model.lm_head.weight.add_(1.0)
    passes.begin()
    assert torch.equal(copied.lm_head.weight, state.model.lm_head.weight.bfloat16())
