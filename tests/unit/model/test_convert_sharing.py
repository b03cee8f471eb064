"""Llamas made to share their FFNs, and the way back."""

import pytest
import torch
from fixture_checkpoint import TEXT, write_checkpoint, write_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

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


def test_least_squares_is_the_best_fit_of_outputs_on_the_text():
    random = torch.Generator().manual_seed(3)
    matrices = [torch.randn(7, 5, generator=random) for _ in range(3)]
    states = [torch.randn(200, 5, generator=random) @ torch.randn(5, 5, generator=random) for _ in range(3)]
    found = llama.least_squares(matrices, [states_of.T @ states_of for states_of in states])
    wanted = torch.cat([x @ w.T for w, x in zip(matrices, states, strict=True)])
    expected = torch.linalg.lstsq(torch.cat(states).double(), wanted.double()).solution.T.float()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def test_moments_are_those_of_what_the_projections_read(stock, tmp_path):
    model = MobiLlamaForCausalLM.from_pretrained(convert(stock, tmp_path / "ours")).eval()
    tokens = torch.arange(24).view(1, 24)
    moments = llama.measure_moments(model, iter([tokens]))
    with torch.inference_mode():
        reference = LlamaForCausalLM.from_pretrained(stock).eval()
        read = {}
        for layer, block in enumerate(reference.model.layers):
            block.mlp.down_proj.register_forward_pre_hook(
                lambda _, inputs, layer=layer: read.__setitem__(layer, inputs[0][0])
            )
        reference(tokens)
    for layer, states in read.items():
        torch.testing.assert_close(moments[layer].inner, states.T @ states, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_a_low_rank_delta_misses_only_the_smaller_singular_values(rank):
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    a, b = llama.low_rank(matrix, rank)
    assert a.shape == (rank, 9) and b.shape == (6, rank)
    missed = torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt()
    torch.testing.assert_close((matrix - b @ a).norm(), missed, atol=1e-5, rtol=1e-4)


def test_nearest_is_the_layer_least_far_from_all():
    centre = torch.randn(4, 3)
    own = {part: [centre + 5, centre + 0.1, centre - 5, centre] for part in llama.PARTS}
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
