"""Replay of real runs: equal where nothing was changed, and it says where it parts from what was."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import toy_corpus, toy_recipe

from mobillama.core import atomic
from mobillama.core.errors import UserError
from mobillama.core.records import LEDGER, Ledger, manifest_hash, read_manifest, write_manifest
from mobillama.lineage.replay import first_difference, intervals, replay, spot_check
from mobillama.train import train

MADE_BY_THE_LEDGER = {"time", "event", "records", "previous", "digest"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    toy_corpus(folder)
    train(toy_recipe(folder))
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of a run and its corpus, which sits beside it."""
    shutil.copytree(trained, tmp_path / "copy")
    recipe = tmp_path / "copy" / "run" / "run.toml"
    recipe.write_text(recipe.read_text().replace(str(trained), str(tmp_path / "copy")))
    vouch(tmp_path / "copy" / "run")
    return tmp_path / "copy"


def vouch(run):
    """Let the ledger vouch for the records as they are now, as a forger would."""
    Ledger(run / LEDGER).append("warning", step=12, reason="changed by a test")


def rewrite(artifact, **changed):
    """Write the manifest of an artifact anew, as a forger would."""
    record = read_manifest(artifact)
    facts = {key: value for key, value in record.items() if key not in ("kind", "format", "files", "digest")}
    write_manifest(artifact, record["kind"], **{**facts, **changed})


def test_a_run_is_repeated_bit_for_bit_and_the_ledger_says_so(folder):
    outcome = replay(folder / "run", 3, 9)
    assert outcome.equal and outcome.losses == 6
    # Both checkpoints on the way, with weights and optimizer state each.
    weights = len(load_file(folder / "run" / "checkpoints" / "step-00000006" / "model.safetensors"))
    assert outcome.tensors > 2 * 3 * weights
    ledger = Ledger(folder / "run" / LEDGER)
    assert not ledger.check()
    last = ledger.entries()[-1]
    assert (last["event"], last["from_step"], last["to_step"], last["equal"]) == ("replay", 3, 9, True)


def test_the_beginning_follows_from_the_seed(folder):
    assert replay(folder / "run", 0, 3).equal


def test_one_flipped_bit_of_a_weight_is_named(folder):
    checkpoint = folder / "run" / "checkpoints" / "step-00000009"
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"].view(torch.int32)[3] ^= 1
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors: content differs"):
        replay(folder / "run", 6, 9)
    rewrite(checkpoint)
    outcome = replay(folder / "run", 6, 12)
    assert outcome.parting is not None and outcome.parting.step == 9
    assert "weights: model.norm.weight differs in 1 of 32 values" in outcome.parting.what
    assert Ledger(folder / "run" / LEDGER).entries()[-1]["equal"] is False


def test_a_changed_optimizer_state_is_named(folder):
    state = folder / "run" / "states" / "step-00000006"
    tensors = load_file(state / "state.safetensors")
    name = next(name for name in tensors if name.startswith("optimizer") and tensors[name].numel() > 9)
    tensors[name].flatten()[0] += 1
    save_file(tensors, state / "state.safetensors")
    rewrite(state)
    outcome = replay(folder / "run", 3, 9)
    assert outcome.parting is not None and outcome.parting.step == 6
    assert outcome.parting.what.startswith(f"state: {name} differs in 1 of")


def test_an_altered_document_is_found_at_the_step_that_saw_it(folder):
    corpus = folder / "corpus"
    for shard in corpus.glob("train/*/*.tokens"):
        data = bytearray(shard.read_bytes())
        data[::40] = b"\x21" * len(data[::40])
        shard.write_bytes(data)
    with pytest.raises(UserError, match="content differs"):
        replay(folder / "run", 3, 6)
    rewrite(corpus)
    with pytest.raises(UserError, match=r"the corpus .* it was trained on"):
        replay(folder / "run", 3, 6)
    plan = folder / "run" / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "corpus": manifest_hash(corpus)}))
    vouch(folder / "run")
    outcome = replay(folder / "run", 3, 6)
    assert outcome.parting is not None and outcome.parting.step == 4
    assert "was recorded" in outcome.parting.what


def test_a_changed_seed_is_found_in_the_first_step(folder):
    recipe = folder / "run" / "run.toml"
    recipe.write_text(recipe.read_text().replace("seed = 7", "seed = 8"))
    with pytest.raises(UserError, match=r"run\.toml: content differs from the ledger"):
        replay(folder / "run", 0, 3)
    vouch(folder / "run")
    outcome = replay(folder / "run", 0, 3)
    assert outcome.parting is not None and outcome.parting.step == 1


def test_a_changed_loss_in_the_metrics_is_found(folder):
    metrics = folder / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[4]["loss"] += 1e-6
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    vouch(folder / "run")
    outcome = replay(folder / "run", 3, 6)
    assert outcome.parting is not None and outcome.parting.step == 5
    assert outcome.parting.what.startswith("loss ")


def test_spot_checks_are_drawn_from_the_shortest_intervals(folder):
    assert intervals(folder / "run") == [(0, 3), (3, 6), (6, 9), (9, 12)]
    outcomes = spot_check(folder / "run", 2)
    drawn = [(outcome.from_step, outcome.to_step) for outcome in outcomes]
    assert len(set(drawn)) == 2 and set(drawn) <= set(intervals(folder / "run"))
    assert all(outcome.equal for outcome in outcomes)


def test_intervals_need_a_kept_state(folder):
    shutil.rmtree(folder / "run" / "states" / "step-00000006")
    assert intervals(folder / "run") == [(0, 3), (3, 6), (9, 12)]
    with pytest.raises(UserError, match="step 6 has no state to go on from"):
        replay(folder / "run", 6, 9)
    with pytest.raises(UserError, match="no checkpoint of step 7 after 3; there are 6, 9, 12"):
        replay(folder / "run", 3, 7)


def test_a_run_that_is_being_trained_is_not_replayed(folder):
    with atomic.exclusive(folder / "run"), pytest.raises(UserError, match="is working here"):
        replay(folder / "run", 3, 6)


def test_differences_of_the_environment_are_told(folder):
    ledger = folder / "run" / LEDGER
    entries = Ledger(ledger).entries()
    ledger.unlink()
    entries[0]["environment"]["packages"]["torch"] = "1.0"
    entries[0]["world_size"] = 2
    for entry in entries:
        facts = {key: entry[key] for key in entry.keys() - MADE_BY_THE_LEDGER}
        Ledger(ledger).append(entry["event"], **facts)
    told = replay(folder / "run", 3, 6).differences
    assert any(line.startswith("packages.torch 1.0 then") for line in told)
    assert "world_size 2 then, 1 now" in told


def test_difference_is_by_bits():
    zeros = {"a": torch.tensor([0.0, float("nan")])}
    assert first_difference(zeros, {"a": torch.tensor([0.0, float("nan")])}) is None
    assert "1 of 2 values" in (first_difference(zeros, {"a": torch.tensor([-0.0, float("nan")])}) or "")
    assert first_difference(zeros, {}) == "a is only repeated"
    assert first_difference({}, zeros) == "a is only kept"
