import json

import numpy as np
import pytest
import torch
from small_models import VOCABULARY, make_config, make_model
from transformers import LlamaConfig, LlamaForCausalLM

from mobillama.core.errors import UserError
from mobillama.model import TorchSession
from mobillama.model.checkpoint import last_checkpoint, locate

TOKENS = np.array([5, 9, 11, 30, 7, 8, 41], dtype=np.int32)
SAME = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture
def session(model):
    return TorchSession(model)


def full_logits(model, tokens):
    with torch.no_grad():
        return model(torch.as_tensor(tokens, dtype=torch.int64)[None], use_cache=False).logits[0].numpy()


def test_pieces_give_the_logits_of_the_whole(session, model):
    expected = full_logits(model, TOKENS)
    every = session.forward(TOKENS[:4], all_logits=True)
    assert (every.shape, every.dtype) == ((4, VOCABULARY), np.float32)
    np.testing.assert_allclose(every, expected[:4], **SAME)
    last = session.forward(TOKENS[4:])
    assert last.shape == (VOCABULARY,)
    np.testing.assert_allclose(last, expected[-1], **SAME)
    assert (session.position, session.context_length, session.vocab_size) == (7, 64, VOCABULARY)


def test_embeddings_in_place_of_tokens_give_the_same_logits(session, model):
    rows = model.get_input_embeddings().weight.detach().numpy()[TOKENS]
    session.forward(TOKENS[:3])
    actual = session.forward_embeddings(rows[3:], all_logits=True)
    np.testing.assert_allclose(actual, full_logits(model, TOKENS)[3:], **SAME)
    assert session.position == 7


def test_truncating_and_resetting_forget_the_rest(session, model):
    for kept in (3, 0):
        session.reset()
        session.forward(TOKENS)
        session.truncate(kept)
        assert session.position == kept
        other = np.array([60, 61], dtype=np.int32)
        expected = full_logits(model, np.concatenate([TOKENS[:kept], other]))[-1]
        np.testing.assert_allclose(session.forward(other), expected, **SAME)


def test_misuse_is_refused(session):
    with pytest.raises(UserError, match="65 tokens do not fit: the model's context is 64"):
        session.forward(np.ones(65, dtype=np.int32))
    with pytest.raises(ValueError, match="at least one token"):
        session.forward(np.array([], dtype=np.int32))
    session.forward(TOKENS)
    with pytest.raises(ValueError, match="not within the 7 tokens"):
        session.truncate(8)


def test_bfloat16_weights_give_float32_logits(tmp_path, model):
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    session = TorchSession.load(tmp_path, device="cpu")
    assert session.model.dtype == torch.bfloat16
    assert session.forward(TOKENS).dtype == np.float32


def test_a_run_means_its_last_checkpoint(tmp_path, model):
    for step, scale in ((9, 1.0), (100, 2.0), (1000, 3.0)):
        model.lm_head.weight.data.fill_(scale)
        model.save_pretrained(tmp_path / "checkpoints" / f"step-{step:08d}")
    (tmp_path / "checkpoints" / ".step-00002000.partial").mkdir()
    (tmp_path / "checkpoints" / "step-00003000").mkdir()  # no model in it
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00001000"
    loaded = TorchSession.load(tmp_path, device="cpu").model
    assert (loaded.lm_head.weight == 3.0).all()


def test_any_hugging_face_causal_model_is_loaded(tmp_path):
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4
        )
    )
    llama.save_pretrained(tmp_path)
    np.testing.assert_allclose(
        TorchSession.load(tmp_path, device="cpu").forward(TOKENS),
        full_logits(llama.eval(), TOKENS)[-1],
        **SAME,
    )


def test_what_is_no_model_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        locate(tmp_path / "absent")
    with pytest.raises(UserError, match="neither a model"):
        locate(tmp_path)
    make_config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded as a language model"):
        TorchSession.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded as a language model"):
        TorchSession.load(tmp_path)


def test_a_missing_weight_is_an_error_not_a_random_weight(tmp_path):
    make_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["ffn_of_layer"] = [0, 0, 1, 1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"3 weights are missing, first model\.ffns\.1\.down_proj\.weight"):
        TorchSession.load(tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "shape"])
def test_damaged_weights_are_an_error(tmp_path, damage):
    make_model().save_pretrained(tmp_path)
    if damage == "truncate":
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    else:
        make_config(intermediate_size=96).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded as a language model") as caught:
        TorchSession.load(tmp_path)
    assert "\n" not in str(caught.value)
