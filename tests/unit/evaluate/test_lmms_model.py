"""The adapter for lmms-eval against its interface: its own where it is installed, else a double of it."""

import abc
import importlib
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from answering_double import answering_model
from PIL import Image

from mobillama.core.errors import UserError


class Lmms(abc.ABC):
    """What lmms-eval 0.7 asks of a model."""

    def __init__(self):
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None


@pytest.fixture
def adapter(monkeypatch):
    """The adapter's module."""
    if importlib.util.find_spec("lmms_eval") is None:
        for name, values in {
            "lmms_eval": {},
            "lmms_eval.api": {},
            "lmms_eval.api.model": {"lmms": Lmms},
            "lmms_eval.models": {},
            "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        }.items():
            module = ModuleType(name)
            vars(module).update(values)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, "mobillama.evaluate.lmms_model", raising=False)
    return importlib.import_module("mobillama.evaluate.lmms_model")


@pytest.fixture
def model(adapter, monkeypatch):
    asked = []

    def reply(text, shown):
        asked.append((text, len(shown)))
        return "a red circle. And more"

    opened = answering_model(reply)
    opened.eye = lambda image: np.full((1, 64), ord("A"), dtype=np.float32)
    monkeypatch.setattr(adapter, "open_model", lambda name, device=None: opened)
    made = adapter.MobiLlamaModel(pretrained="m.gguf", batch_size="1")
    made.asked = asked
    made.task_dict = {"gqa": {"test": [{"image": Image.new("RGB", (4, 4))}, {"image": None}]}}
    return made


def request(prompt, document, **options):
    def images_of(row):
        return [row["image"]] if row["image"] else []

    return SimpleNamespace(args=(prompt, options, images_of, document, "gqa", "test"))


def test_answers_are_given_in_order_with_the_images_of_each_document(model):
    answers = model.generate_until(
        [
            request("What?", 0, until=["."], max_new_tokens=16),
            request("Which?", 1, until=".", do_sample=False),
        ]
    )
    assert answers == ["a red circle", "a red circle"]
    assert ("User: \nWhat?\n", 1) in model.asked
    assert ("User: Which?\n", 0) in model.asked


def test_max_new_tokens_ends_an_answer(model):
    assert model.generate_until([request("What?", 0, max_new_tokens=5)]) == ["a red"]


def test_what_cannot_be_done_is_told(adapter, model):
    with pytest.raises(UserError, match="only images"):
        model.answer("What?", ["film.mp4"], {})
    with pytest.raises(UserError, match="greedy"):
        model.answer("What?", [], {"do_sample": True, "temperature": 0.7})
    with pytest.raises(UserError, match="batch_size 8"):
        adapter.MobiLlamaModel(pretrained="m.gguf", batch_size=8)
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(UserError):
            method([])


def test_lmms_eval_finds_the_adapter_by_its_entry_point(adapter):
    found = adapter.manifest()
    module, _, name = found.simple_class_path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is adapter.MobiLlamaModel
    assert adapter.MobiLlamaModel.is_simple
