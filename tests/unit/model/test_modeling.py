import pytest
import torch
from small_models import make_config, make_model
from torch import nn

from mobillama.core.errors import UserError
from mobillama.model import MobiLlamaConfig, MobiLlamaForCausalLM
from mobillama.model.sharing import ffn_of_layer

# Other shapes of the same fp32 products: observed 2e-6 on logits of standard deviation about 1.
SAME = {"rtol": 1e-4, "atol": 2e-5}
EVERYTHING = {"ffn_of_layer": [0, 1, 1, 0], "ffn_delta_rank": 3, "ffn_gains": True}


def wake(model):
    """Give gains and deltas values that matter."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "ffn_delta" in name or "ffn_gain" in name:
            parameter.data.normal_(0.5, 0.2, generator=generator)
    return model


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["shared", "everything"])
def test_weight_names_are_those_of_the_format(options):
    names = set(make_model(**options).state_dict())
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for layer in range(4):
        prefix = f"model.layers.{layer}."
        expected |= {f"{prefix}self_attn.{part}_proj.weight" for part in "qkvo"}
        expected |= {f"{prefix}{norm}_layernorm.weight" for norm in ("input", "post_attention")}
        if options:
            expected |= {f"{prefix}ffn_delta.{part}_{ab}" for part in ("gate", "up", "down") for ab in "ab"}
            expected |= {f"{prefix}ffn_gain"}
    for ffn in range(2 if options else 1):
        expected |= {f"model.ffns.{ffn}.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert names == expected


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["shared", "everything"])
def test_cached_decoding_equals_the_full_forward(options, input_ids):
    model = wake(make_model(**options))
    full = model(input_ids).logits
    cache, pieces = None, []
    for piece in input_ids.split([5, 1, 1, 3, 2], dim=1):
        outputs = model(piece, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        pieces.append(outputs.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, **SAME)


def test_left_padding_does_not_change_an_answer(model, input_ids):
    long, short = input_ids[0], input_ids[1, :7]
    padded = torch.stack([long, torch.cat([torch.zeros(5, dtype=torch.int64), short])])
    mask = torch.ones_like(padded)
    mask[1, :5] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    answers = model.generate(padded, attention_mask=mask, **options)[:, 12:]
    assert torch.equal(answers[0], model.generate(long[None], **options)[0, 12:])
    assert torch.equal(answers[1], model.generate(short[None], **options)[0, 7:])


def test_packed_documents_do_not_see_each_other(model, input_ids):
    model.train()
    packed, lengths = input_ids[:1], [5, 7]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    alone = torch.cat([model.model(part).last_hidden_state for part in packed.split(lengths, dim=1)], dim=1)
    together = model.model(packed, position_ids=positions).last_hidden_state
    torch.testing.assert_close(together, alone, **SAME)
    assert not torch.allclose(model.model(packed).last_hidden_state, alone, **SAME)


def test_a_ready_mask_keeps_documents_apart_as_well(model, input_ids):
    document = torch.tensor([0] * 5 + [1] * 7)
    mask = (document[:, None] == document[None, :]).tril()[None, None]  # (1, 1, T, T)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    expected = model.model(input_ids, position_ids=positions, use_cache=False).last_hidden_state
    actual = model.model(input_ids, mask, positions, use_cache=False).last_hidden_state
    torch.testing.assert_close(actual, expected, **SAME)


def test_training_keeps_no_cache_unless_asked(model, input_ids):
    assert model(input_ids).past_key_values is not None
    model.train()
    assert model(input_ids).past_key_values is None
    assert model(input_ids, use_cache=True).past_key_values is not None


def test_gradient_of_a_shared_ffn_is_the_sum_over_its_layers(input_ids):
    shared = make_model()
    apart = make_model(ffn_of_layer=[0, 1, 2, 3])
    apart.load_state_dict(
        {
            name: shared.state_dict()[name if "ffns" not in name else f"model.ffns.0.{name.split('.', 3)[3]}"]
            for name in apart.state_dict()
        }
    )
    for model in (shared, apart):
        model(input_ids, labels=input_ids).loss.backward()
    for part in ("gate_proj", "up_proj", "down_proj"):
        gradients = [getattr(ffn, part).weight.grad for ffn in apart.model.ffns]
        assert all(gradient.abs().max() > 0 for gradient in gradients)
        torch.testing.assert_close(getattr(shared.model.ffns[0], part).weight.grad, sum(gradients), **SAME)


def test_deltas_at_full_rank_reproduce_different_ffns(input_ids):
    apart = make_model(ffn_of_layer=[0, 1, 2, 3])
    rank = apart.config.hidden_size
    shared = make_model(ffn_delta_rank=rank)
    shared.load_state_dict(apart.state_dict(), strict=False)  # all but FFNs 1 to 3 and the deltas
    eye = torch.eye(rank)
    for layer, own in zip(shared.model.layers, apart.model.ffns, strict=True):
        for part, factors in (("gate", "ba"), ("up", "ba"), ("down", "ab")):
            weights = [getattr(ffn, f"{part}_proj").weight.data for ffn in (own, shared.model.ffns[0])]
            difference = weights[0] - weights[1]
            # The rank is the smaller side: the identity stands on that side of the product.
            setattr_data(layer.ffn_delta, f"{part}_{factors[0]}", difference)
            setattr_data(layer.ffn_delta, f"{part}_{factors[1]}", eye)
    torch.testing.assert_close(shared(input_ids).logits, apart(input_ids).logits, **SAME)


def setattr_data(module, name, value):
    assert getattr(module, name).shape == value.shape
    getattr(module, name).data = value


def test_a_gain_scales_the_inner_activations(model, input_ids):
    gained = make_model(ffn_gains=True)
    gained.load_state_dict(model.state_dict(), strict=False)
    for layer in gained.model.layers:
        layer.ffn_gain.data.fill_(2.0)
    model.model.ffns[0].down_proj.weight.data *= 2.0
    torch.testing.assert_close(gained(input_ids).logits, model(input_ids).logits, **SAME)


def test_options_start_as_the_plain_shared_model(input_ids):
    plain, extended = make_model(), make_model(ffn_delta_rank=3, ffn_gains=True)
    plain_weights = plain.state_dict()
    extended.load_state_dict(plain_weights, strict=False)
    assert torch.equal(extended(input_ids).logits, plain(input_ids).logits)
    extended(input_ids, labels=input_ids).loss.backward()
    assert all(
        parameter.grad.abs().max() > 0
        for name, parameter in extended.named_parameters()
        if name.endswith(("_b", "ffn_gain"))
    )


def test_weights_start_with_the_stated_deviations():
    model = make_model(hidden_size=256, intermediate_size=512, initializer_range=0.02)
    residual = 0.02 / (2 * 4) ** 0.5
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = residual if "o_proj" in name or "down_proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
        else:
            assert torch.equal(parameter, torch.ones_like(parameter))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(input_ids, reentrant):
    plain, checkpointed = wake(make_model(**EVERYTHING)).train(), wake(make_model(**EVERYTHING)).train()
    checkpointed.activation_checkpointing_enable({"use_reentrant": reentrant})
    for model in (plain, checkpointed):
        model(input_ids, labels=input_ids).loss.backward()
    for (name, one), (_, other) in zip(
        plain.named_parameters(), checkpointed.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_loss_from_hidden_states_equals_the_models_own(model, input_ids):
    hidden = model.model(input_ids).last_hidden_state[:, :-1].flatten(0, 1)
    loss = nn.functional.linear_cross_entropy(hidden, model.lm_head.weight, input_ids[:, 1:].flatten())
    torch.testing.assert_close(loss, model(input_ids, labels=input_ids).loss)


def test_inputs_embeds_and_logits_to_keep(model, input_ids):
    full = model(input_ids).logits
    embedded = model(inputs_embeds=model.get_input_embeddings()(input_ids), logits_to_keep=3).logits
    torch.testing.assert_close(embedded, full[:, -3:], **SAME)
    with pytest.raises(ValueError, match="exactly one"):
        model(input_ids, inputs_embeds=torch.zeros(2, 12, 48))


def test_hidden_states_and_attentions_are_recorded(input_ids):
    model = make_model(attn_implementation="eager")
    outputs = model(input_ids, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 5
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 4, 12, 12)] * 4


@pytest.mark.parametrize("scheme", ["all", "pairs", "sandwich"])
def test_configuration_survives_saving(tmp_path, scheme):
    config = make_config(
        ffn_of_layer=ffn_of_layer(scheme, 4), ffn_delta_rank=2, ffn_gains=True, rope_theta=5e5
    )
    config.save_pretrained(tmp_path)
    assert MobiLlamaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_default_configuration_is_the_papers_model():
    config = MobiLlamaConfig()
    assert config.ffn_of_layer == [0] * 22
    assert (config.num_key_value_heads, config.head_dim, config.num_ffns) == (32, 64, 1)
    assert config.rope_parameters["rope_theta"] == 10000.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ffn_of_layer": [0, 0]}, "2 entries for 4 layers"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"num_key_value_heads": 0}, "does not divide"),
        ({"hidden_size": 50}, "multiple of 8"),
        ({"head_dim": 32}, "head_dim = 32"),
        ({"ffn_delta_rank": -1}, "ffn_delta_rank = -1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        make_config(**changes)


def test_auto_classes_know_the_model(tmp_path, model, input_ids):
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MobiLlamaConfig
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is MobiLlamaForCausalLM
    assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)
    base = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(base(input_ids).last_hidden_state, model.model(input_ids).last_hidden_state)
