"""Llamas made to share their FFNs, and the way back."""

import pytest
import torch
from fixture_checkpoint import TEXT, write_checkpoint, write_tokenizer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mobillama.core.errors import UserError
from mobillama.model import MobiLlamaForCausalLM, llama
from mobillama.model.convert import Sharing, convert

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
FULL_RANK = 32


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "calibration.txt").write_text(TEXT)
    return folder


@pytest.fixture
def input_ids():
    return torch.randint(320, (2, 20), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def logits(folder, input_ids):
    return AutoModelForCausalLM.from_pretrained(folder)(input_ids).logits


def test_a_llama_becomes_ours_with_equal_logits(stock, input_ids, tmp_path):
    ours = convert(stock, tmp_path / "ours")
    assert isinstance(AutoModelForCausalLM.from_pretrained(ours), MobiLlamaForCausalLM)
    assert torch.equal(logits(ours, input_ids), logits(stock, input_ids))


@pytest.mark.parametrize("window", [None, 256])
def test_a_mistral_becomes_ours_with_equal_logits(input_ids, tmp_path, window):
    torch.manual_seed(0)
    MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window)).save_pretrained(tmp_path / "stock")
    ours = convert(tmp_path / "stock", tmp_path / "ours")
    assert torch.equal(logits(ours, input_ids), logits(tmp_path / "stock", input_ids))


def test_a_window_shorter_than_the_context_is_refused(tmp_path):
    MistralForCausalLM(MistralConfig(**SIZES, sliding_window=255)).save_pretrained(tmp_path / "stock")
    with pytest.raises(UserError, match=r"config\.json: its layers see only 255 tokens back"):
        convert(tmp_path / "stock", tmp_path / "ours")


def test_a_qwen_becomes_ours_where_its_biases_are_zero(input_ids, tmp_path):
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "zero")  # transformers starts biases at zero
    ours = convert(tmp_path / "zero", tmp_path / "ours")
    assert torch.equal(logits(ours, input_ids), logits(tmp_path / "zero", input_ids))
    model.model.layers[2].self_attn.k_proj.bias.data[1] = 0.5
    model.save_pretrained(tmp_path / "biased")
    with pytest.raises(UserError, match=r"layers\.2\.self_attn\.k_proj\.bias is not zero"):
        convert(tmp_path / "biased", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("start", llama.STARTS)
def test_deltas_of_full_rank_make_a_shared_model_what_it_was(stock, input_ids, tmp_path, start):
    sharing = Sharing("all", start, FULL_RANK, stock / "calibration.txt")
    ours = convert(stock, tmp_path / "ours", sharing=sharing)
    model = MobiLlamaForCausalLM.from_pretrained(ours)
    assert model.config.num_ffns == 1
    torch.testing.assert_close(logits(ours, input_ids), logits(stock, input_ids), atol=1e-3, rtol=1e-3)


def test_more_rank_is_nearer(stock, input_ids, tmp_path):
    whole = logits(stock, input_ids)
    distances = []
    for rank in (0, 8, 24):
        shared = convert(stock, tmp_path / str(rank), sharing=Sharing("pairs", "mean", rank))
        distances.append(float((logits(shared, input_ids) - whole).norm()))
    assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize("rank", [0, 3])
def test_least_squares_fits_the_outputs_of_every_ffn_on_the_text(stock, tmp_path, rank):
    tokens = torch.randint(320, (4, 200), generator=torch.Generator().manual_seed(2))
    apart = MobiLlamaForCausalLM.from_pretrained(convert(stock, tmp_path / "ours")).eval()
    shared = llama.share(apart, [0, 0, 1, 1], start="least-squares", delta_rank=rank, batches=[tokens])
    reference, read, gave = LlamaForCausalLM.from_pretrained(stock).eval(), [], []
    for block in reference.model.layers:
        block.mlp.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        block.mlp.register_forward_hook(lambda _, inputs, output: gave.append(output))
    with torch.inference_mode():
        reference(tokens)
        silu = torch.nn.functional.silu
        for ffn, layers in ((0, (0, 1)), (1, (2, 3))):
            gate, up, down = (getattr(shared.model.ffns[ffn], part).weight for part in llama.PARTS)
            inner = []
            for layer in layers:
                delta = shared.model.layers[layer].ffn_delta
                ends = [(delta.gate_b @ delta.gate_a, delta.up_b @ delta.up_a)] if rank else [(0, 0)]
                inner += [silu(read[layer] @ (gate + g).T) * (read[layer] @ (up + u).T) for g, u in ends]
            inner = torch.cat(inner).flatten(0, 1).double()
            wanted = torch.cat([gave[layer] for layer in layers]).flatten(0, 1).double()
            best = (wanted - inner @ torch.linalg.lstsq(inner, wanted).solution).square().mean()
            assert best < 0.9 * wanted.square().mean()
            torch.testing.assert_close(
                (wanted - inner @ down.T.double()).square().mean(), best, rtol=1e-3, atol=0
            )


def test_units_are_matched_before_a_mean_so_that_one_ffn_in_another_order_is_found_again(stock, tmp_path):
    apart = MobiLlamaForCausalLM.from_pretrained(convert(stock, tmp_path / "ours")).eval()
    first, second = apart.model.ffns[0], apart.model.ffns[1]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    sign = torch.where(torch.arange(40) % 3 == 0, -1.0, 1.0)
    second.gate_proj.weight.data = first.gate_proj.weight.data[order]
    second.up_proj.weight.data = first.up_proj.weight.data[order] * sign[:, None]
    second.down_proj.weight.data = first.down_proj.weight.data[:, order] * sign
    tokens = torch.arange(24).view(1, 24)
    shared = llama.share(apart, [0, 0, 1, 2], start="mean")
    with torch.inference_mode():
        torch.testing.assert_close(shared(tokens).logits, apart(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_a_low_rank_delta_misses_only_the_smaller_singular_values(rank):
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    a, b = llama.low_rank(matrix, rank)
    assert a.shape == (rank, 9) and b.shape == (6, rank)
    missed = torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt()
    torch.testing.assert_close((matrix - b @ a).norm(), missed, atol=1e-5, rtol=1e-4)


def test_nearest_is_the_layer_least_far_from_all():
    centre = torch.randn(4, 3)
    own = [dict.fromkeys(llama.PARTS, centre + offset) for offset in (5, 0.1, -5, 0)]
    assert llama.nearest(own) in (1, 3)


@pytest.mark.parametrize(
    "options", [{}, {"ffn_delta_rank": 3, "ffn_gains": True}, {"tie_word_embeddings": True}]
)
def test_ours_becomes_a_stock_llama_and_comes_back(options, input_ids, tmp_path):
    write_checkpoint(tmp_path / "ours", **options)
    stock = convert(tmp_path / "ours", tmp_path / "stock", stock_llama=True)
    model = AutoModelForCausalLM.from_pretrained(stock)
    assert type(model) is LlamaForCausalLM
    torch.testing.assert_close(
        logits(stock, input_ids), logits(tmp_path / "ours", input_ids), atol=2e-3, rtol=1e-3
    )
    back = convert(stock, tmp_path / "back")
    torch.testing.assert_close(logits(back, input_ids), logits(stock, input_ids), atol=0, rtol=0)
    if not options:
        assert MobiLlamaForCausalLM.from_pretrained(back).config.num_ffns == 1


@pytest.mark.parametrize(
    ("sharing", "said"),
    [
        (Sharing("most"), "no such scheme"),
        (Sharing("all", "least-squares"), "calibration"),
        (Sharing("all", "best"), "choose one of"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_left(stock, tmp_path, sharing, said):
    with pytest.raises(UserError, match=said):
        convert(stock, tmp_path / "ours", sharing=sharing)
    assert not (tmp_path / "ours").exists()


def test_a_model_that_shares_already_is_not_shared_again(tmp_path):
    write_checkpoint(tmp_path / "ours")
    with pytest.raises(UserError, match="one plain FFN a layer"):
        convert(tmp_path / "ours", tmp_path / "again", sharing=Sharing("pairs"))


@pytest.mark.parametrize("options", [{"stock_llama": True}, {"sharing": Sharing("pairs")}])
def test_weights_that_are_no_numbers_are_named_and_nothing_is_left(tmp_path, options):
    model = write_checkpoint(tmp_path / "ours", ffn_of_layer=[0, 1, 2, 3])
    model.model.norm.weight.data[3] = float("nan")
    model.save_pretrained(tmp_path / "ours")
    (tmp_path / "ours" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"ours: tensor model\.norm\.weight holds NaN"):
        convert(tmp_path / "ours", tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
