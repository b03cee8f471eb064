"""Each FFN is kept once: in memory, in files, under adapters, after generation, in exported graphs."""

import copy
import json
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_models import make_model
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from mobillama.model import MobiLlamaForCausalLM
from mobillama.model.accounting import parameters

INTERMEDIATE_SIZE = 80
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


def copies_in_memory(model: nn.Module) -> int:
    """Return how many storages hold a gate matrix, whatever they are called."""
    shape = (INTERMEDIATE_SIZE, 48)
    gates = [p for name, p in model.named_parameters(remove_duplicate=False) if "gate_proj" in name]
    return len({p.untyped_storage().data_ptr() for p in gates if p.shape == shape})


def storage_bytes(model: nn.Module) -> int:
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(storages.values())


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def tensors_in_file(path: Path) -> dict[str, bytes]:
    """Return each tensor's bytes, read by the format's own rules: header length, JSON header, data."""
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:header_end])
    header.pop("__metadata__", None)
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert all(end == start for (_, end), (start, _) in pairwise(spans))
    assert header_end + spans[-1][1] == len(content)
    return {
        name: content[header_end + start : header_end + end]
        for name, entry in header.items()
        for start, end in [entry["data_offsets"]]
    }


def assert_files_hold_each_tensor_once(folder: Path, stored_bytes: int) -> None:
    tensors = [tensor for path in weight_files(folder) for tensor in tensors_in_file(path).items()]
    matrices = Counter(content for name, content in tensors if "norm" not in name)
    assert max(matrices.values()) == 1
    assert sum(len(content) for _, content in tensors) == stored_bytes


def stored_bytes(model: MobiLlamaForCausalLM) -> int:
    return parameters(model.config).stored * 4


def test_the_counting_sees_copies(tmp_path):
    # A Llama whose layers alias one FFN: saving undoes the sharing, or refuses.
    sizes = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": INTERMEDIATE_SIZE}
    llama = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, num_attention_heads=4, **sizes))
    assert copies_in_memory(llama) == 4
    for layer in llama.model.layers:
        layer.mlp.load_state_dict(llama.model.layers[0].mlp.state_dict())
    llama.save_pretrained(tmp_path)
    with pytest.raises(AssertionError):
        assert_files_hold_each_tensor_once(tmp_path, storage_bytes(llama))


@pytest.mark.parametrize("table", [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 2, 3]])
def test_memory_holds_each_ffn_once(table):
    model = make_model(ffn_of_layer=table)
    assert copies_in_memory(model) == len(set(table))
    assert storage_bytes(model) == stored_bytes(model)
    assert storage_bytes(copy.deepcopy(model)) == stored_bytes(model)


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_saved_files_hold_each_tensor_once(tmp_path, shard_size, tied, input_ids):
    model = make_model(ffn_of_layer=[0, 1, 1, 0], tie_word_embeddings=tied, ffn_delta_rank=2, ffn_gains=True)
    for parameter in model.parameters():  # equal values would look like copies
        parameter.data += torch.randn_like(parameter) * 0.01
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(weight_files(tmp_path)) > 3) == (shard_size == "20KB")
    assert_files_hold_each_tensor_once(tmp_path, stored_bytes(model))
    loaded = MobiLlamaForCausalLM.from_pretrained(tmp_path)
    assert storage_bytes(loaded) == stored_bytes(model)
    assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)


def test_training_steps_keep_one_copy(model, input_ids):
    model.train().activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(input_ids, labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert copies_in_memory(model) == 1
    moments = [state["exp_avg"].shape for state in optimizer.state.values()]
    assert moments.count((INTERMEDIATE_SIZE, 48)) == 2  # gate and up


def test_generation_single_batched_and_continuous_keeps_one_copy_and_agrees(model, input_ids):
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    batched = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), **GREEDY)[:, 12:]
    for row, expected in zip(input_ids, batched, strict=True):
        assert torch.equal(model.generate(row[None], **GREEDY)[0, 12:], expected)
    outputs = model.generate_batch(
        input_ids.tolist(),
        generation_config=GenerationConfig(**{**GREEDY, "eos_token_id": -1}, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, page_size=16, max_batch_tokens=64),
    )
    assert sorted(output.generated_tokens for output in outputs.values()) == sorted(batched.tolist())
    assert copies_in_memory(model) == 1
    assert storage_bytes(model) == stored_bytes(model)


def test_pipeline_keeps_one_copy(tmp_path, model):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, pipeline

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2").save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    generate = pipeline("text-generation", model=str(tmp_path), device="cpu")
    text = generate("w5 w9 w11", return_full_text=False, **GREEDY)[0]["generated_text"]
    expected = model.generate(torch.tensor([[5, 9, 11]]), **GREEDY)[0, 3:]
    assert text.split() == [f"w{token}" for token in expected]
    assert copies_in_memory(generate.model) == 1


def test_lora_on_the_shared_ffn_is_one_adapter_and_merges_into_it(tmp_path, model, input_ids):
    from peft import LoraConfig, PeftModel, get_peft_model

    before = model(input_ids).logits
    lora = LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(model), lora)
    trainable = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * 3  # A and B of each matrix of the one FFN
    assert storage_bytes(adapted) == stored_bytes(model) + 4 * 3 * 2 * (48 + INTERMEDIATE_SIZE)
    changed = adapted(input_ids).logits
    assert (changed - before).abs().max() > 0.1

    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(input_ids).logits, changed)

    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(input_ids).logits, changed, rtol=1e-3, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert_files_hold_each_tensor_once(tmp_path / "merged", stored_bytes(model))


def test_exported_graph_holds_one_copy(tmp_path, model, input_ids):
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(
        model,
        (input_ids,),
        {"use_cache": False},
        dynamic_shapes={"input_ids": {1: length}, "use_cache": None},
    )
    assert set(program.state_dict) == set(model.state_dict())
    longer = torch.cat([input_ids, input_ids], dim=1)
    torch.testing.assert_close(program.module()(longer, use_cache=False).logits, model(longer).logits)
    torch.export.save(program, tmp_path / "model.pt2")
    entries = zipfile.ZipFile(tmp_path / "model.pt2").infolist()
    weights = [entry for entry in entries if Path(entry.filename).name.startswith("weight_")]
    assert sum(entry.file_size for entry in weights) == stored_bytes(model)


def test_compiled_graph_is_whole_and_keeps_one_copy(model, input_ids):
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, actual = model(input_ids, use_cache=False).logits, compiled(input_ids, use_cache=False).logits
    torch.testing.assert_close(actual, expected)
    assert copies_in_memory(compiled) == 1


@pytest.mark.slow
def test_inductor_compiles_training_and_keeps_one_copy(model, input_ids):
    model.train()
    expected = copy.deepcopy(model)
    expected(input_ids, labels=input_ids).loss.backward()
    torch.compile(model, fullgraph=True)(input_ids, labels=input_ids).loss.backward()
    for (name, one), (_, other) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert copies_in_memory(model) == 1


@pytest.mark.parametrize("offloaded", ["model.ffns.0", "model.layers.1"])
def test_a_part_offloaded_to_disk_comes_and_goes_without_its_sharers(tmp_path, offloaded, input_ids):
    model = make_model(ffn_of_layer=[0, 1, 1, 0])
    model.save_pretrained(tmp_path)
    parts = [
        "embed_tokens",
        "norm",
        "rotary_emb",
        *(f"ffns.{i}" for i in range(2)),
        *(f"layers.{i}" for i in range(4)),
    ]
    places = {**{f"model.{part}": "cpu" for part in parts}, "lm_head": "cpu", offloaded: "disk"}
    loaded = MobiLlamaForCausalLM.from_pretrained(
        tmp_path, device_map=places, offload_folder=tmp_path / "offloaded"
    )
    assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)
    on_meta = [name for name, parameter in loaded.named_parameters() if parameter.is_meta]
    assert on_meta
    assert all(name.startswith(offloaded) for name in on_meta)
