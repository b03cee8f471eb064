"""Released checkpoints, in every form they were published, against a re-statement of their arithmetic.

The arithmetic is written here from the paper and the release's description, in plain torch: no code of
ours or of transformers takes part in it.
"""

import json
import math

import pytest
import torch
from fixture_checkpoint import write_tokenizer
from safetensors.torch import save_file
from torch.nn import functional

from mobillama.core.errors import UserError
from mobillama.core.records import check_files
from mobillama.core.tensors import TensorFile
from mobillama.model import MobiLlamaForCausalLM
from mobillama.model.convert import Sharing, convert
from mobillama.model.loading import load_language_model

LAYERS, HIDDEN, FFN, HEADS, VOCABULARY = 4, 32, 48, 4, 53
SETTINGS = {
    "architectures": ["LlamaForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_mobillama.LlamaForCausalLM"},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": FFN,
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
PARTS = {"gate_proj": (FFN, HIDDEN), "up_proj": (FFN, HIDDEN), "down_proj": (HIDDEN, FFN)}


def make_weights(*, shared=True, dtype=torch.float32):
    """Return weights under the release's names, full multi-head attention, the FFN under every layer."""
    source = torch.Generator().manual_seed(5)

    def some(*shape):
        return (torch.randn(shape, generator=source) / shape[-1] ** 0.5).to(dtype)

    weights = {
        "model.embed_tokens.weight": some(VOCABULARY, HIDDEN),
        "lm_head.weight": some(VOCABULARY, HIDDEN),
    }
    weights["model.norm.weight"] = 1 + 0.1 * some(HIDDEN)
    ffn = {part: some(*shape) for part, shape in PARTS.items()}
    for layer in range(LAYERS):
        base = f"model.layers.{layer}"
        for part in "qkvo":
            weights[f"{base}.self_attn.{part}_proj.weight"] = 2 * some(HIDDEN, HIDDEN)
        for norm in ("input", "post_attention"):
            weights[f"{base}.{norm}_layernorm.weight"] = 1 + 0.1 * some(HIDDEN)
        for part, shape in PARTS.items():
            own = ffn[part].clone() if shared else some(*shape)
            weights[f"{base}.mlp.{part}.weight"] = own
    return weights


def write_pickled(folder, weights, settings=SETTINGS, shard_count=2):
    """Write weights as the base models were: fp32 pickle shards, with old transformers' buffers."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    weights = dict(weights)
    for layer in range(LAYERS):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(HIDDEN // HEADS // 2)
    names = list(weights)
    size = -(-len(names) // shard_count)
    weight_map = {}
    for number in range(shard_count):
        file = f"pytorch_model-{number + 1:05d}-of-{shard_count:05d}.bin"
        held = names[number * size : (number + 1) * size]
        torch.save({name: weights[name].clone() for name in held}, folder / file)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def write_once(folder, weights, settings=SETTINGS):
    """Write weights as the chat model was: safetensors, the FFN under the first layer's name alone."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**settings, "torch_dtype": "bfloat16"}))
    kept = {
        name: weight.clone()
        for name, weight in weights.items()
        if ".mlp." not in name or ".layers.0." in name
    }
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def official_logits(weights, input_ids, attention_dtype=torch.bfloat16):
    """Return the logits (T, V) of the released arithmetic for one sequence (T,)."""
    head_dim = HIDDEN // HEADS
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(len(input_ids)).float(), frequencies)
    cos, sin = torch.cat([angles, angles], 1).cos(), torch.cat([angles, angles], 1).sin()

    def norm(x, name):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        return weights[name] * (x.float() * scale).to(x.dtype)

    def rotate(x):
        half = head_dim // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    x = weights["model.embed_tokens.weight"][input_ids]
    for layer in range(LAYERS):
        base = f"model.layers.{layer}"
        y = norm(x, f"{base}.input_layernorm.weight")
        q, k, v = (
            (y @ weights[f"{base}.self_attn.{part}_proj.weight"].T).view(-1, HEADS, head_dim).transpose(0, 1)
            for part in "qkv"
        )
        q, k, v = (states.to(attention_dtype) for states in (rotate(q), rotate(k), v))
        attended = functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        attended = attended.to(x.dtype).transpose(0, 1).reshape(-1, HIDDEN)
        x = x + attended @ weights[f"{base}.self_attn.o_proj.weight"].T
        y = norm(x, f"{base}.post_attention_layernorm.weight")
        gate, up = (y @ weights[f"{base}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (functional.silu(gate) * up) @ weights[f"{base}.mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ weights["lm_head.weight"].T


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def weights():
    return make_weights()


@pytest.fixture
def release(tmp_path, weights):
    return write_pickled(tmp_path / "MobiLlama-05B", weights)


@pytest.fixture
def input_ids():
    return torch.randint(VOCABULARY, (11,), generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def logits_of(model, input_ids):
    return model(input_ids[None]).logits[0]


def test_a_converted_base_model_gives_the_releases_logits(release, weights, input_ids, tmp_path):
    with pytest.warns(UserWarning, match="num_key_value_heads = 2; the weights have 4"):
        folder = convert(release, tmp_path / "ours")
    model = MobiLlamaForCausalLM.from_pretrained(folder, attn_implementation="official_bf16")
    assert torch.equal(logits_of(model, input_ids), official_logits(weights, input_ids))
    exact = MobiLlamaForCausalLM.from_pretrained(folder)
    difference = (logits_of(exact, input_ids) - official_logits(weights, input_ids)).abs().max()
    in_fp32 = official_logits(weights, input_ids, torch.float32)
    torch.testing.assert_close(logits_of(exact, input_ids), in_fp32, atol=1e-5, rtol=1e-5)
    assert 1e-4 < difference < 0.1  # the cast is what differs


def test_the_shared_ffn_is_stored_once(release, tmp_path, weights):
    with pytest.warns(UserWarning):
        folder = convert(release, tmp_path / "ours")
    file = TensorFile(folder / "model.safetensors")
    stored = sum(tensor.size for tensor in file.tensors.values())
    ffn = sum(math.prod(shape) for shape in PARTS.values())
    assert stored == sum(weight.numel() for weight in weights.values()) - (LAYERS - 1) * ffn
    assert {name for name in file.tensors if ".ffns." in name} == {
        f"model.ffns.0.{part}.weight" for part in PARTS
    }
    assert check_files(folder) == []
    settings = json.loads((folder / "config.json").read_text())
    assert settings["model_type"] == "mobillama" and settings["ffn_of_layer"] == [0] * LAYERS
    assert settings["num_key_value_heads"] == HEADS


@pytest.mark.parametrize("form", ["pickled", "once", "renamed"])
def test_a_released_folder_loads_directly(form, tmp_path, weights, input_ids):
    settings = SETTINGS if form != "renamed" else {**SETTINGS, "model_type": "mobillama"}
    write = write_once if form == "once" else write_pickled
    folder = write(tmp_path / "release", weights, settings)
    with pytest.warns(UserWarning, match="num_key_value_heads"):
        model = MobiLlamaForCausalLM.from_pretrained(folder, attn_implementation="official_bf16").eval()
    assert torch.equal(logits_of(model, input_ids), official_logits(weights, input_ids))
    assert len(model.model.ffns) == 1
    with pytest.warns(UserWarning):
        loaded = load_language_model(folder)
    assert isinstance(loaded, MobiLlamaForCausalLM)


def test_bf16_stays_bf16(tmp_path, input_ids):
    half = make_weights(dtype=torch.bfloat16)
    folder = write_once(tmp_path / "MobiLlama-05B-Chat", half)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.warns(UserWarning):
        converted = convert(folder, tmp_path / "ours")
    file = TensorFile(converted / "model.safetensors")
    assert {tensor.dtype for tensor in file.tensors.values()} == {"BF16"}
    assert load_language_model(converted).dtype == torch.bfloat16
    assert "### Assistant:" in (converted / "chat_template.jinja").read_text()


def test_large_base_keeps_an_ffn_for_every_layer(tmp_path, input_ids):
    own = make_weights(shared=False)
    folder = write_pickled(tmp_path / "MobiLlama-1B", own)
    with pytest.warns(UserWarning):
        converted = convert(folder, tmp_path / "ours")
    model = MobiLlamaForCausalLM.from_pretrained(converted, attn_implementation="official_bf16")
    assert model.config.ffn_of_layer == list(range(LAYERS))
    assert torch.equal(logits_of(model, input_ids), official_logits(own, input_ids))


@pytest.fixture
def damaged(tmp_path, weights):
    """Return a release in whose third layer one bit of the FFN differs."""
    changed = {name: weight.clone() for name, weight in weights.items()}
    tensor = changed["model.layers.2.mlp.up_proj.weight"]
    tensor.view(torch.int32)[3, 4] ^= 1
    return write_pickled(tmp_path / "damaged", changed), changed


@pytest.mark.filterwarnings("ignore:.*num_key_value_heads")
def test_a_copy_that_differs_in_one_bit_is_named(damaged, tmp_path):
    folder, _ = damaged
    with pytest.raises(
        UserError, match=r"pytorch_model-0000\d-of-00002.bin: tensor model.layers.2.mlp.up_proj"
    ):
        convert(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    with pytest.raises(UserError, match=r"model\.layers\.2"):
        MobiLlamaForCausalLM.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore:.*num_key_value_heads")
def test_average_takes_the_mean_of_the_copies(damaged, tmp_path):
    folder, changed = damaged
    converted = convert(folder, tmp_path / "ours", average=True)
    copies = [changed[f"model.layers.{layer}.mlp.up_proj.weight"].double() for layer in range(LAYERS)]
    found = MobiLlamaForCausalLM.from_pretrained(converted).state_dict()["model.ffns.0.up_proj.weight"]
    torch.testing.assert_close(found, torch.stack(copies).mean(0).float(), atol=0, rtol=0)


def remove(name):
    def change(folder, weights):
        write_pickled(folder, {key: value for key, value in weights.items() if key != name})

    return change


def add(name):
    def change(folder, weights):
        write_pickled(folder, {**weights, name: weights["lm_head.weight"]})

    return change


def replace(name, make):
    def change(folder, weights):
        write_pickled(folder, {**weights, name: make(weights[name])})

    return change


def drop_shard(folder, weights):
    (folder / "pytorch_model-00002-of-00002.bin").unlink()


def run_code(folder, weights):
    class Hostile:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"model.norm.weight": Hostile()}, folder / "pytorch_model-00002-of-00002.bin")


def other_sizes(folder, weights):
    (folder / "config.json").write_text(json.dumps({**SETTINGS, "num_hidden_layers": 8}))


@pytest.mark.filterwarnings("ignore:.*num_key_value_heads")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_shard, "pytorch_model-00002-of-00002.bin: missing"),
        (run_code, "not a readable file of weights"),
        (other_sizes, "says 8 layers, the weights have 4"),
        (remove("model.norm.weight"), "model.norm.weight"),
        (remove("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight"),
        (replace("lm_head.weight", lambda w: w[:-1]), "lm_head.weight is"),
        (replace("model.norm.weight", lambda w: w * math.nan), "model.norm.weight holds NaN"),
        (add("model.extra"), "model.extra"),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_nothing_is_left(change, said, release, weights, tmp_path, capfd):
    change(release, weights)
    with pytest.raises(UserError, match=said):
        convert(release, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    assert "code ran" not in capfd.readouterr().out


@pytest.mark.filterwarnings("ignore:.*num_key_value_heads")
@pytest.mark.parametrize("sharing", [None, Sharing("pairs")])
def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(sharing, release, tmp_path):
    write_tokenizer(release)
    with pytest.raises(UserError, match=r"tokenizer\.json: 320 tokens, but .*embed_tokens.* has 53 rows"):
        convert(release, tmp_path / "ours", sharing=sharing)
    assert not (tmp_path / "ours").exists()


def test_another_architecture_is_refused(release, tmp_path):
    (release / "config.json").write_text(json.dumps({**SETTINGS, "model_type": "gpt2"}))
    with pytest.raises(UserError, match="gpt2"):
        convert(release, tmp_path / "ours")
