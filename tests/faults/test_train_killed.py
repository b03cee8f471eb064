"""Real processes, really killed: the same command ends with the same weights."""

import random
import signal
import subprocess
import time

import pytest
import toy_run

from mobillama.core.records import Ledger
from mobillama.train.checkpoints import Store

KILLS = 3
LONGEST_S = 120


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = toy_run.write_toy(tmp_path_factory.mktemp("killed"))
    assert toy_run.run("prepare", path).returncode == 0
    return path


def start(recipe, *overrides):
    return subprocess.Popen(
        toy_run.command("train", recipe, *overrides),
        stderr=subprocess.PIPE,
        env=toy_run.environment(),
        text=True,
    )


def wait_for(condition, process):
    """Wait until a condition holds or the process has ended."""
    deadline = time.monotonic() + LONGEST_S
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def final_weights(run):
    store = Store(run)
    return (store.checkpoint(store.steps()[-1]) / "model.safetensors").read_bytes()


def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_weights(recipe, tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert toy_run.run("train", recipe, f"run_dir={undisturbed}").returncode == 0
    chance = random.Random(11)
    for kill in range(KILLS):
        process = start(recipe, f"run_dir={disturbed}")
        metrics = disturbed / "metrics.jsonl"
        lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        wanted = lines + 2 + 3 * kill
        wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= wanted, process)  # noqa: B023
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        process.communicate()
        for step in Store(disturbed).steps():
            assert (Store(disturbed).checkpoint(step) / "model.safetensors").is_file()
    assert toy_run.run("train", recipe, f"run_dir={disturbed}").returncode == 0
    assert final_weights(disturbed) == final_weights(undisturbed)
    assert (disturbed / "metrics.jsonl").read_bytes().count(b"\n") == 20
    assert Ledger(disturbed / "ledger.jsonl").check() == []


def test_killed_inside_a_checkpoint_write_no_half_checkpoint_is_taken_for_whole(recipe, tmp_path):
    run = tmp_path / "run"
    process = start(recipe, f"run_dir={run}", "checkpoint.every_steps=1")
    wait_for(lambda: any(run.glob("checkpoints/.step-*.partial")), process)
    process.kill()
    process.communicate()
    whole = Store(run).steps()
    assert toy_run.run("train", recipe, f"run_dir={run}", "checkpoint.every_steps=1").returncode == 0
    assert Store(run).steps()[: len(whole)] == whole
    assert Store(run).steps() == list(range(1, 21))
    assert not list(run.glob("checkpoints/.*"))


def test_asked_to_stop_it_saves_exits_cleanly_and_a_second_process_was_refused(recipe, tmp_path):
    run = tmp_path / "run"
    process = start(recipe, f"run_dir={run}", "train.max_steps=100000", "checkpoint.count=0")
    wait_for(lambda: (run / "metrics.jsonl").exists(), process)
    second = toy_run.run("train", recipe, f"run_dir={run}", "train.max_steps=100000", "checkpoint.count=0")
    assert second.returncode == 2
    assert f"process {process.pid} is working here" in second.stderr
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0
    last = Ledger(run / "ledger.jsonl").entries()[-1]
    assert last["reason"] == "asked to stop"
    assert Store(run).steps() == [last["step"]]


def test_a_flipped_bit_in_a_state_or_checkpoint_is_refused(recipe, tmp_path):
    run = tmp_path / "run"
    assert toy_run.run("train", recipe, f"run_dir={run}").returncode == 0
    Store(run).checkpoint(20).rename(tmp_path / "last")
    Store(run).state(20).rename(tmp_path / "last state")
    for path in (Store(run).state(15) / "state.safetensors", Store(run).checkpoint(15) / "model.safetensors"):
        intact = path.read_bytes()
        path.write_bytes(intact[:-5] + bytes([intact[-5] ^ 4]) + intact[-4:])
        refused = toy_run.run("train", recipe, f"run_dir={run}")
        assert refused.returncode == 2
        assert path.name in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
        path.write_bytes(intact)


def test_training_without_a_corpus_says_what_to_do(recipe, tmp_path):
    refused = toy_run.run(
        "train", recipe, f"corpus.directory={tmp_path / 'none'}", f"run_dir={tmp_path / 'run'}"
    )
    assert refused.returncode == 2
    assert "run mobillama prepare" in refused.stderr
