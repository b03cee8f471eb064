"""A checkpoint in the engine against the same checkpoint in torch."""

import gguf
import numpy as np
import pytest
import torch
from fixture_checkpoint import write_checkpoint

from mobillama import engine
from mobillama.core.records import write_manifest
from mobillama.engine.prefix import PrefixCache
from mobillama.export import quantize
from mobillama.export.perplexity import perplexity
from mobillama.model import TorchSession

pytest.importorskip("mobillama.engine._native", reason="the native engine is not built here")

KINDS = {
    "shared": {},
    "pairs, all heads": {"ffn_of_layer": [0, 0, 1, 1], "num_key_value_heads": 4},
    "deltas and gains": {"ffn_delta_rank": 4, "ffn_gains": True},
    "tied": {"tie_word_embeddings": True},
}


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """A checkpoint whose weights half precision holds exactly, as a torch session and as an f16 file."""
    folder = tmp_path_factory.mktemp("model")
    model = write_checkpoint(folder / "c", **KINDS[request.param])
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half())
    model.save_pretrained(folder / "c")
    write_manifest(folder / "c", "checkpoint")
    quantize(folder / "c", folder / "m.gguf", type="f16")
    return TorchSession(model), engine.load(folder / "m.gguf", threads=1, kv_type="f16")


def tokens(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 320, count).astype(np.int32)


def test_f16_logits_agree_with_torch(both):
    ours, theirs = both[1].session(), both[0]
    theirs.reset()
    given = tokens(80, 0)
    expected = theirs.forward(given, all_logits=True)
    # Weights are equal; keys, values and the activations of f16 matrices are rounded to half precision.
    assert np.abs(ours.forward(given, all_logits=True) - expected).max() < 1e-2 * np.abs(expected).max()


def test_greedy_text_equals_torchs_on_50_prompts_ties_aside(both):
    session, model = both
    options = engine.GenerationOptions(sampling=engine.GREEDY, max_tokens=24)
    for seed in range(50):
        prompt = tokens(12, seed).tolist()
        ours = [event.token for event in model.generate(prompt, options) if event.token is not None]
        session.reset()
        expected = session.forward(np.array(prompt + ours, dtype=np.int32), all_logits=True)[
            len(prompt) - 1 : -1
        ]
        taken = expected[np.arange(len(ours)), ours]
        # A token that torch scores lower than its best by less than the tolerance above is a tie.
        assert (expected.max(axis=1) - taken < 2e-2 * np.abs(expected).max()).all()


def test_perplexity_is_measured_alike_through_both_sessions(both):
    windows = [tokens(60, seed) for seed in range(4)]
    ours, theirs = perplexity(both[1].session(), windows), perplexity(both[0], windows)
    logits = torch.stack([torch.from_numpy(run(both[0], window[:-1])) for window in windows])
    labels = torch.from_numpy(np.stack([window[1:] for window in windows])).long()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).exp().item()
    assert theirs.value == pytest.approx(expected, rel=1e-5)
    share, error = ours.increase_over(theirs)
    assert abs(share) < 5e-3 and error < 5e-3


def run(session: TorchSession, given: np.ndarray) -> np.ndarray:
    session.reset()
    return session.forward(given, all_logits=True)


@pytest.mark.parametrize("type", ["q4_0", "q8_0"])
def test_a_quantised_file_computes_with_the_values_gguf_reads_from_it(tmp_path, type):
    model = write_checkpoint(tmp_path / "c")
    quantize(tmp_path / "c", tmp_path / "m.gguf", type=type)
    read = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors
    }
    from mobillama.export.plan import device_name

    with torch.no_grad():
        for name, weight in model.state_dict().items():
            weight.copy_(torch.from_numpy(read[device_name(name)].copy()).reshape(weight.shape))
    given = tokens(60, 1)
    expected = run(TorchSession(model), given)
    found = (
        engine.load(tmp_path / "m.gguf", threads=1, kv_type="f16").session().forward(given, all_logits=True)
    )
    # The engine rounds activations to 8 bits in blocks of 32 before each quantised matrix.
    difference = np.square(found - expected).mean() / np.square(expected).mean()
    assert difference < 0.05**2 * 10


@pytest.mark.parametrize("split", [1, 3, 17])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_logits_do_not_depend_on_how_tokens_are_batched(tmp_path, split, kv_type):
    write_checkpoint(tmp_path / "c", hidden_size=128, intermediate_size=224, num_attention_heads=8)
    quantize(tmp_path / "c", tmp_path / "m.gguf", type="mixed")
    model = engine.load(tmp_path / "m.gguf", threads=2, kv_type=kv_type)
    given, session = tokens(150, 2), model.session()
    whole = model.session().forward(given, all_logits=True)
    pieces = [session.forward(given[at : at + split], all_logits=True) for at in range(0, len(given), split)]
    # Exactly: speculation takes tokens from batches on the strength of this.
    assert session.split_tolerance == 0
    assert (np.concatenate(pieces) == whole).all()


@pytest.mark.parametrize("computed_by", ["engine", "torch", "torch in bfloat16"])
@pytest.mark.parametrize("context", [128, 24, 5])
def test_speculation_equals_plain_greedy_decoding_through_context_shifts(tmp_path, computed_by, context):
    weights = write_checkpoint(tmp_path / "c", max_position_embeddings=context)
    if computed_by == "engine":
        quantize(tmp_path / "c", tmp_path / "m.gguf", type="mixed")
        model = engine.load(tmp_path / "m.gguf", threads=1)
    else:
        weights.to(torch.bfloat16 if "bfloat16" in computed_by else torch.float32)
        model = engine.LanguageModel(
            "torch", engine.read_tokenizer(tmp_path / "c"), lambda: TorchSession(weights)
        )
    for seed in range(5):
        prompt = (tokens(20, seed).tolist() * 3)[:context]
        answers = []
        for speculate in (False, True):
            options = engine.GenerationOptions(
                sampling=engine.GREEDY, max_tokens=90, context_shift=True, speculate=speculate
            )
            fresh = PrefixCache(model.session())
            answers.append([event.token for event in model.generate(prompt, options, cache=fresh)])
        assert answers[0] == answers[1]
