import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mobillama.core.errors import UserError
from mobillama.core.records import Ledger, read_jsonl, read_manifest
from mobillama.train import last_checkpoint, loop, train, training, work
from mobillama.train.checkpoints import Store
from mobillama.train.objectives import NextToken
from mobillama.train.work import TextWork


def weights(run, step):
    return load_file(Store(run).checkpoint(step) / "model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(toy_recipe, tmp_path_factory):
    from mobillama.core import config
    from mobillama.train.recipe import Recipe

    run = tmp_path_factory.mktemp("undisturbed") / "run"
    return train(config.load(toy_recipe, Recipe, [f'run_dir="{run}"', "train.average_decay=0.9"]))


def test_a_run_learns_and_records_everything(undisturbed):
    metrics = read_jsonl(undisturbed / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 21))
    assert metrics[0]["loss"] == pytest.approx(math.log(300), abs=0.15)  # a new model knows nothing
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 1
    assert metrics[-1]["tokens"] == 20 * 256
    measured = [(line["step"], line["whole"]) for line in read_jsonl(undisturbed / "evaluations.jsonl")]
    assert measured == [(5, False), (10, False), (15, False), (20, False), (20, True)]  # one text, then all
    assert {line["prompt"] for line in read_jsonl(undisturbed / "samples.jsonl")} == {"the model"}
    assert list((undisturbed / "tensorboard").glob("events*"))


def test_checkpoints_chain_to_their_parents_and_the_ledger_tells_the_story(undisturbed):
    store, ledger = Store(undisturbed), Ledger(undisturbed / "ledger.jsonl")
    assert store.steps() == [5, 10, 15, 20]
    assert store.resumable() == [15, 20]
    assert ledger.check() == []
    told = [entry["checkpoint"] for entry in ledger.entries() if entry["event"] == "checkpoint"]
    parents = [read_manifest(store.checkpoint(step), "checkpoint")["parent"] for step in store.steps()]
    assert parents == [None, *told[:-1]]
    assert ledger.entries()[-1]["reason"] == "finished"


def test_a_checkpoint_is_a_transformers_model(undisturbed):
    model = AutoModelForCausalLM.from_pretrained(last_checkpoint(undisturbed))
    held = weights(undisturbed, 20)
    assert all(torch.equal(held[name], value) for name, value in model.state_dict().items() if name in held)
    assert sum(".ffns." in name for name in held) == 3


def test_stop_and_resume_gives_the_same_weights_and_records_bit_for_bit(undisturbed, load):
    loaded = load("train.average_decay=0.9")
    run = loaded.recipe.run_dir
    stopped = []

    class StopAfter(training.Between):
        def __call__(self, step):
            self.session.stop.wanted = step.step == 8 and not stopped
            stopped.extend([step.step] if self.session.stop.wanted else [])
            return super().__call__(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Between", StopAfter)
        train(loaded)
        assert Store(run).steps() == [5, 8]
        train(loaded)
    assert equal(weights(run, 20), weights(undisturbed, 20))
    assert equal(*(load_file(Store(r).state(20) / "state.safetensors") for r in (run, undisturbed)))
    losses = [[line["loss"] for line in read_jsonl(r / "metrics.jsonl")] for r in (run, undisturbed)]
    assert losses[0] == losses[1]


def test_a_finished_run_is_left_alone(undisturbed, toy_recipe):
    from mobillama.core import config
    from mobillama.train.recipe import Recipe

    before = (undisturbed / "ledger.jsonl").read_bytes()
    train(config.load(toy_recipe, Recipe, [f'run_dir="{undisturbed}"', "train.average_decay=0.9"]))
    assert (undisturbed / "ledger.jsonl").read_bytes() == before


def test_another_recipe_or_corpus_is_refused(undisturbed, toy_recipe):
    from mobillama.core import config
    from mobillama.train.recipe import Recipe

    other = config.load(toy_recipe, Recipe, [f'run_dir="{undisturbed}"', "train.average_decay=0.9", "seed=9"])
    with pytest.raises(UserError, match="began with seed = 3, the recipe says 9"):
        train(other)


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(load):
    norms = {}
    for micro_batch in (2, 8):
        loaded = load("train.max_steps=1", f"train.micro_batch={micro_batch}", 'train.precision="fp32"')
        loaded.recipe.run_dir.mkdir(parents=True, exist_ok=True)
        session = training.open_session(loaded, TextWork, training.parallel.World())
        plan = training.plan_of(loaded.recipe, 1)
        steps = []
        loop.run(
            session.state,
            plan,
            session.objective,
            session.work.batches(session.world),
            until=1,
            after_step=steps.append,
        )
        norms[micro_batch] = steps[0].loss, steps[0].gradient_norm
    assert norms[2] == pytest.approx(norms[8], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_with_step_documents_and_checkpoint(load):
    loaded = load("checkpoint.count=0")

    class Poisoned(NextToken):
        calls = 0

        def __call__(self, model, batch):
            losses, counted = super().__call__(model, batch)
            Poisoned.calls += 1
            return losses * (float("nan") if Poisoned.calls == 6 else 1.0), counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "NextToken", Poisoned)
        with pytest.raises(UserError, match=r"step 3: loss nan.*(left|right): "):
            train(loaded)
    run = loaded.recipe.run_dir
    assert Store(run).steps() == [2]
    assert all(torch.isfinite(value).all() for value in weights(run, 2).values())
    assert "loss nan" in Ledger(run / "ledger.jsonl").entries()[-1]["reason"]


def test_bits_per_byte_agree_with_a_hand_count(undisturbed, load):
    from mobillama.data import Corpus

    corpus = Corpus(load().recipe.corpus.directory)
    model = AutoModelForCausalLM.from_pretrained(last_checkpoint(undisturbed), dtype=torch.float32)
    nats, size_bytes = 0.0, 0
    for held in corpus.heldout("left"):
        tokens = [corpus.end_of_text_id, *held.tokens[:-1].tolist()]
        for start in range(0, len(tokens) - 1, 32):
            window = torch.tensor([tokens[start : start + 33]])
            scores = torch.log_softmax(model(window[:, :-1]).logits[0], dim=-1)
            nats -= scores[np.arange(window.shape[1] - 1), window[0, 1:]].sum().item()
        size_bytes += len(corpus.text(held.document).encode())
    recorded = read_jsonl(undisturbed / "evaluations.jsonl")[-1]
    assert recorded["whole"] is True
    assert recorded["subsets"]["left"]["bits_per_byte"] == pytest.approx(
        nats / math.log(2) / size_bytes, rel=0.01
    )


def test_minutes_become_steps_once_and_are_recorded(load):
    loaded = load("train.max_steps=400000", "train.max_minutes=0.03")
    train(loaded)
    plan = json.loads((loaded.recipe.run_dir / "plan.json").read_text())
    assert 1 <= plan["total_steps"] < 400000
    assert Store(loaded.recipe.run_dir).steps()[-1] == plan["total_steps"]
