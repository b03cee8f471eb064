import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from mobillama.core import config
from mobillama.core.errors import UserError
from mobillama.core.records import Ledger, manifest_hash, read_jsonl, read_manifest, write_manifest
from mobillama.lineage.replay import replay
from mobillama.lineage.verify import check
from mobillama.model.convert import Sharing, convert
from mobillama.train import last_checkpoint, objectives, train, training
from mobillama.train.checkpoints import Store
from mobillama.train.distillation import Distillation, Imitation, hidden_distance
from mobillama.train.objectives import IGNORED, HeadLoss
from mobillama.train.recipe import DistillSection, Recipe
from mobillama.train.work import TextWork


@pytest.fixture(scope="module")
def family(toy_recipe, tmp_path_factory):
    """A toy teacher whose layers own their FFNs, and a student made from it whose layers share one."""
    folder = tmp_path_factory.mktemp("family")
    overrides = [f'run_dir="{folder / "teacher"}"', "model.ffn_sharing=none", "train.max_steps=12"]
    teacher = last_checkpoint(train(config.load(toy_recipe, Recipe, overrides)))
    return teacher, convert(teacher, folder / "student", sharing=Sharing("all", delta_rank=2))


@pytest.fixture
def healing(family, load):
    """Return the toy recipe that heals the student, with overrides."""
    teacher, student = family

    def load_with(*overrides):
        return load(
            "train.objective=distill", f'model.start_from="{student}"', f'distill.teacher="{teacher}"',
            "distill.hidden_weight=0.5", "train.max_steps=8", "checkpoint.count=2", *overrides,
        )  # fmt: skip

    return load_with


def weights(run, step):
    return load_file(Store(run).checkpoint(step) / "model.safetensors")


@pytest.mark.parametrize(("temperature", "label_share"), [(1.0, 0.0), (2.5, 0.0), (2.5, 0.3)])
def test_the_loss_and_its_gradient_are_the_textbook_divergence(monkeypatch, temperature, label_share):
    monkeypatch.setattr(objectives, "CPU_BLOCK", 300 * 16)  # 50 positions in 4 blocks, the last one short
    torch.manual_seed(0)
    states, head = torch.randn(50, 16, requires_grad=True), torch.randn(300, 16, requires_grad=True)
    wide, teacher_head = torch.randn(50, 24), torch.randn(300, 24)
    labels = torch.randint(0, 300, (50,))
    labels[[7, 8, 49]] = IGNORED
    section = DistillSection(teacher="t", temperature=temperature, label_share=label_share)
    ours = HeadLoss.apply(states, head, Imitation(labels, wide, teacher_head, section))

    counted = labels != IGNORED
    logits, wanted = (states @ head.T)[counted], (wide @ teacher_head.T)[counted]
    divergence = functional.kl_div(
        torch.log_softmax(logits / temperature, -1),
        torch.softmax(wanted / temperature, -1),
        reduction="sum",
    )
    text = functional.cross_entropy(logits, labels[counted], reduction="sum")
    plain = (1 - label_share) * temperature**2 * divergence + label_share * text
    torch.testing.assert_close(ours, plain)
    for got, expected in zip(
        torch.autograd.grad(0.3 * ours, (states, head)),
        torch.autograd.grad(0.3 * plain, (states, head)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_hidden_states_are_held_against_the_same_share_of_the_teachers_depth():
    theirs = tuple(torch.full((1, 2, 4), value) for value in (1.0, 2.0, 3.0, 4.0))
    counted = torch.tensor([[1.0, 0.0]])
    assert float(hidden_distance((theirs[1], theirs[3]), theirs, counted)) == 0
    # Layer 1 of 2 stands at the teacher's layer 2: off by 1 of 2, so (1/2)^2; layer 2 is right.
    off = (torch.full((1, 2, 4), 3.0), theirs[3])
    assert float(hidden_distance(off, theirs, counted)) == pytest.approx(0.25 / 2)


def test_a_copy_of_the_teacher_has_nothing_to_learn(family):
    teacher = AutoModelForCausalLM.from_pretrained(family[0], dtype=torch.float32)
    copy = AutoModelForCausalLM.from_pretrained(family[0], dtype=torch.float32).train()
    tokens = torch.randint(0, 300, (2, 17))
    batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}
    loss, count = Distillation(teacher, DistillSection(teacher=family[0], hidden_weight=1.0))(copy, batch)
    loss.backward()
    assert count == 32
    assert abs(float(loss.detach())) < 1e-4
    assert max(float(weight.grad.abs().max()) for weight in copy.parameters()) < 1e-4


def test_healing_learns_resumes_bit_for_bit_replays_and_knows_its_ancestors(family, healing, tmp_path):
    whole, stopped = (healing(f'run_dir="{tmp_path / name}"') for name in ("whole", "stopped"))
    run, other = train(whole), stopped.recipe.run_dir
    pending = [3]

    class StopAfter(training.Between):
        def __call__(self, step):
            self.session.stop.wanted = step.step in pending
            pending[:] = [] if step.step in pending else pending
            return super().__call__(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Between", StopAfter)
        train(stopped)
        assert Store(other).steps() == [3]
        train(stopped)
    ours, theirs = weights(run, 8), weights(other, 8)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    losses = [line["loss"] for line in read_jsonl(run / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    teacher, student = (manifest_hash(path) for path in family)
    first, last = (read_manifest(Store(run).checkpoint(step)) for step in (4, 8))
    assert first["parent"] == student
    assert last["parent"] == manifest_hash(Store(run).checkpoint(4))
    assert {(record["started_from"], record["teacher"]) for record in (first, last)} == {(student, teacher)}
    started = Ledger(run / "ledger.jsonl").entries()[0]
    assert (started["started_from"], started["teacher"]) == (student, teacher)
    assert check(run).problems == []
    assert replay(run, 4, 8).equal
    assert replay(run, 0, 4).equal


def test_training_begins_with_the_very_weights_it_starts_from(family, healing):
    _, student = family
    loaded = healing()
    session = training.open_session(loaded, TextWork, training.parallel.World())
    held = load_file(student / "model.safetensors")
    assert all(
        torch.equal(held[name], value) for name, value in session.state.weights().items() if name in held
    )
    assert loaded.recipe.model.ffn_of_layer == [0, 0, 0]
    assert loaded.recipe.model.ffn_delta_rank == 2


def test_another_teacher_than_the_run_began_with_is_refused(family, healing, tmp_path):
    teacher = shutil.copytree(family[0], tmp_path / "teacher")
    loaded = healing(f'distill.teacher="{teacher}"', "train.max_steps=1", "checkpoint.count=0")
    train(loaded)
    write_manifest(teacher, "model", note="another")
    with pytest.raises(UserError, match="its teacher is another than when it began"):
        train(loaded)


def test_a_model_with_other_tokens_is_refused(family, healing, tmp_path):
    student = shutil.copytree(family[1], tmp_path / "student")
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_manifest(student, "model")
    with pytest.raises(UserError, match=r"tokenizer\.json: not the tokenizer of .*corpus\.tokenizer\.path"):
        train(healing(f'model.start_from="{student}"'))


def test_a_changed_weight_of_the_start_is_found(family, healing, tmp_path):
    student = shutil.copytree(family[1], tmp_path / "student")
    weights_file = student / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: content differs"):
        train(healing(f'model.start_from="{student}"'))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.objective=distill"], "go together"),
        (["distill.teacher=nowhere"], "go together"),
        (["train.objective=distil"], "'next-token' or 'distill'"),
        (["model.start_from=nowhere"], "nowhere: no such folder"),
        (
            ["model.hidden_size=64", "model.start_from={student}"],
            "= 64, but .* has 32; leave it out",
        ),
        (
            ["model.ffn_sharing=pairs", "model.start_from={student}"],
            r"ffn_sharing = \[0, 0, 1\], but ",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_together_is_refused(family, load, overrides, message):
    with pytest.raises(UserError, match=message):
        load(*(override.format(student=family[1]) for override in overrides))
