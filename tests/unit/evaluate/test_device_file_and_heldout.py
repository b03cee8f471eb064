"""A device file is judged by its own arithmetic; held-out text is counted in bytes."""

import math
import os
from dataclasses import dataclass

import pytest
import torch
from fixture_checkpoint import write_checkpoint
from lm_eval.api.instance import Instance

from mobillama import engine
from mobillama.core.records import read_jsonl
from mobillama.evaluate import evaluation, heldout, subjects, tasks
from mobillama.export import quantize

CONTEXT = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_checkpoint(folder / "model")
    quantize(folder / "model", folder / "model.gguf", type="f16")
    return folder


@pytest.fixture(scope="module")
def both(folder):
    return [subjects.open_subject(str(folder / name)) for name in ("model", "model.gguf")]


def test_a_device_file_scores_nearly_as_its_checkpoint(both, shared_data, tmp_path):
    chosen = tasks.load(["crows_pairs_english"], data_dir=shared_data / "benchmarks")
    results = [evaluation.evaluate(subject, chosen, tmp_path, limit=5) for subject in both]
    for name in chosen.asked:
        pairs = [
            read_jsonl(tmp_path / result["folder"] / result["tasks"][name]["logs"][0]) for result in results
        ]
        for ours, theirs in zip(*pairs, strict=True):
            values = [[value for value, _ in entry["responses"]] for entry in (ours, theirs)]
            # f16 weights and a cache of 8 bits
            assert values[1] == pytest.approx(values[0], rel=0.02)
            assert values[1] != values[0]


def test_both_encode_and_write_alike(both):
    torch_subject, device_subject = both
    texts = ["Question: What?\nAnswer:", "import json", "naïve café"]
    assert torch_subject.lm.encode(texts, special=True) == device_subject.lm.encode(texts, special=True)
    request = Instance("generate_until", {}, ("def main(", {"until": ["\n\n"], "max_gen_toks": 5}), 0)
    for subject in both:
        (answer,) = subject.lm.generate_until([request])
        assert isinstance(answer, str) and "\n\n" not in answer


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux pins processes")
def test_a_process_with_one_processor_opens_a_device_file_with_one_thread(folder):
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        alone = engine.load(folder / "model.gguf").open_session.__self__.threads
    finally:
        os.sched_setaffinity(0, allowed)
    assert alone == 1
    assert engine.load(folder / "model.gguf", threads=3).open_session.__self__.threads == 3


@dataclass(frozen=True)
class Document:
    id: str
    start: int
    text: str

    @property
    def size_bytes(self):
        return len(self.text.encode())


@dataclass(frozen=True)
class Held:
    document: Document


class Texts:
    """What held-out measuring asks of a corpus."""

    subsets = ("prose", "code")
    identity = "c" * 64

    def heldout(self, subset):
        texts = {"prose": ["Once upon a time, née Smith. " * 40, "The end."], "code": ["import json\n" * 9]}
        for number, text in enumerate(texts[subset]):
            yield Held(Document(f"{subset}/{number}", 1000 * number, text))

    def text(self, document):
        return document.text


@torch.inference_mode()
def bits_per_byte(subject, texts):
    """Return bits per byte by plain forwards over windows of the context that do not overlap."""
    nats = 0.0
    for text in texts:
        tokens = torch.tensor([0, *subject.lm.encode([text], special=True)[0]])
        for start in range(0, len(tokens) - 1, CONTEXT):
            window = tokens[start : start + CONTEXT + 1]
            logits = subject.lm.scorer.model(window[None, :-1]).logits[0].double()
            nats += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def test_heldout_text_is_measured_in_windows_and_bytes(both, tmp_path):
    subject = both[0]
    result = heldout.evaluate_heldout(subject, Texts(), tmp_path)
    for subset in Texts.subsets:
        expected = bits_per_byte(subject, [held.document.text for held in Texts().heldout(subset)])
        assert result["subsets"][subset]["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    assert result["subsets"]["prose"]["documents"] == 2
    again = heldout.evaluate_heldout(subject, Texts(), tmp_path)
    assert again["subsets"] == result["subsets"]
    assert len(read_jsonl(next((tmp_path / result["folder"]).glob("heldout-*.jsonl")))) == 3
