"""Every snippet of docs/works-with.md, run as it stands, and its outcome held against something else."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixture_checkpoint import write_checkpoint
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from mobillama.export.onnx import export_onnx
from mobillama.model.convert import convert

PAGE = Path(__file__).parents[2] / "docs" / "works-with.md"
MOST_LINES = 10
SHARED_GATE = "model.ffns.0.gate_proj.weight"


def snippets() -> dict[str, str]:
    """Return the page's code by the heading it stands under."""
    found = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        for code in re.findall(r"```(?:python|bash)\n(.*?)```", section, flags=re.DOTALL):
            found[heading] = code
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small model whose four layers share one FFN."""
    folder = tmp_path_factory.mktemp("works-with")
    write_checkpoint(folder / "models" / "tiny")
    return folder


@pytest.fixture
def run(place, monkeypatch):
    """Return what runs a snippet and gives its names."""
    monkeypatch.chdir(place)

    def run_snippet(heading):
        names = {}
        exec(compile(snippets()[heading], heading, "exec"), names)
        return names

    return run_snippet


@pytest.fixture
def model(place):
    from mobillama.model import MobiLlamaForCausalLM

    return MobiLlamaForCausalLM.from_pretrained(place / "models" / "tiny").eval()


@pytest.fixture
def tokenizer(place):
    return AutoTokenizer.from_pretrained(place / "models" / "tiny")


def greedy(model, prompt: list[int], count: int = 20) -> list[int]:
    """Return the likeliest tokens after a prompt, whole sequence by whole sequence, without a cache."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            logits = model(torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def until_the_end(tokens: list[int], end: int = 0) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def test_every_snippet_has_at_most_ten_lines_and_a_test():
    for heading, code in snippets().items():
        assert len([line for line in code.splitlines() if line.strip()]) <= MOST_LINES, heading
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [heading for heading in snippets() if tests.count(f'"{heading}"') != 1] == []


@pytest.mark.parametrize("kind", ["pipeline", "generate"])
def test_text_is_that_of_plain_greedy_decoding(run, model, tokenizer, kind):
    heading = {"pipeline": "transformers: pipeline", "generate": "transformers: generate"}[kind]
    prompt = tokenizer("def load(").input_ids
    expected = tokenizer.decode(prompt + until_the_end(greedy(model, prompt)))
    assert run(heading)["text"].removesuffix("<|endoftext|>") == expected


@pytest.mark.slow
def test_continuous_batching_writes_the_same_tokens(run, model):
    names = run("transformers: continuous batching")
    assert sorted(names["answers"]) == sorted(greedy(model, prompt) for prompt in names["prompts"])


def test_lora_merges_into_the_one_ffn(run, place, model):
    names = run("PEFT: LoRA, and merging it")
    before, after = model.state_dict(), load_file(place / "models" / "merged" / "model.safetensors")
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {f"model.ffns.0.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert sum(".ffns." in name for name in after) == 3
    assert torch.equal(names["merged"].state_dict()[SHARED_GATE], after[SHARED_GATE])


def test_sft_trainer_trains_and_saves_a_model_of_ours(run, place, model, tokenizer):
    pytest.importorskip("trl", reason="needs the test extra")
    trainer = run("TRL: SFTTrainer")["trainer"]
    after = type(model).from_pretrained(place / "models" / "tuned").eval()
    given, wanted = tokenizer("2 + 2 = ").input_ids, tokenizer("4").input_ids[0]

    def loss(one):
        with torch.no_grad():
            return -float(torch.log_softmax(one(torch.tensor([given])).logits[0, -1], 0)[wanted])

    assert trainer.state.global_step == 4
    assert loss(after) < loss(model) - 1
    assert after.config.ffn_of_layer == [0, 0, 0, 0]
    assert len([name for name in after.state_dict() if "gate_proj" in name]) == 1


def test_torchao_rounds_the_shared_ffn_once(run, model):
    pytest.importorskip(
        "torchao", reason="not in the test extra: transformers then imports it with every model"
    )
    rounded = run("torchao: quantisation")["model"]
    tokens = torch.arange(1, 40)[None]
    with torch.no_grad():
        near, exact = rounded(tokens).logits, model(tokens).logits
    assert (near - exact).norm() < 0.1 * exact.norm()
    gates = [type(weight).__name__ for name, weight in rounded.named_parameters() if "gate_proj" in name]
    assert gates == ["Int8Tensor"]


def test_an_exported_program_gives_the_same_logits(run, place, model):
    run("torch.export")
    program = torch.export.load(place / "models" / "tiny.pt2").module()
    tokens = torch.arange(1, 100)[None]
    torch.testing.assert_close(program(tokens, use_cache=False).logits, model(tokens).logits)


@pytest.mark.slow
def test_onnxruntime_writes_the_same_tokens(run, place, model):
    pytest.importorskip("onnxscript", reason="needs mobillama[onnx]")
    export_onnx(place / "models" / "tiny", place / "models" / "onnx")
    assert run("onnxruntime")["tokens"] == [5, 6, 7, 8, *greedy(model, [5, 6, 7, 8])]


@pytest.mark.slow
def test_the_harness_itself_scores_as_a_hand_count_does(place, model, tokenizer):
    questions = [
        {"question": f"{word} is", "choices": [" a", " not", " the file"], "answer": 1}
        for word in ("json", "load", "self", "None", "this", "object")
    ]
    tasks = place / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (tasks / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: tasks/rows.jsonl}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: question\ndoc_to_target: answer\n"
        "doc_to_choice: choices\ntarget_delimiter: ''\nmetric_list: [{metric: acc}]\n"
    )
    command = shlex.split(snippets()["lm-evaluation-harness: its own command line"].replace("\\\n", " "))
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=place, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (place / "results").rglob("results_*.json")
    measured = json.loads(written.read_text())["results"]["mine"]["acc,none"]

    right = 0
    for row in questions:
        scores = []
        for choice in row["choices"]:
            start, whole = tokenizer(row["question"]).input_ids, tokenizer(row["question"] + choice).input_ids
            with torch.no_grad():
                logits = torch.log_softmax(model(torch.tensor([whole])).logits[0], -1)
            scores.append(sum(float(logits[at - 1, whole[at]]) for at in range(len(start), len(whole))))
        right += scores.index(max(scores)) == row["answer"]
    assert measured == pytest.approx(right / len(questions))


def test_the_stock_folder_is_a_plain_llama_with_the_same_logits(run, place, model):
    convert(place / "models" / "tiny", place / "models" / "llama", stock_llama=True)
    llama = run("Tools that know only Llama")["llama"]
    assert type(llama) is LlamaForCausalLM
    tokens = torch.arange(1, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(llama(tokens).logits, model(tokens).logits)
