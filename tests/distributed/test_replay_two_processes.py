"""A run of two FSDP processes is repeated by two, bit for bit; one process says what differs."""

import json
import subprocess
import sys

import toy_run

from mobillama.core.records import LEDGER, Ledger

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def by_two(*arguments):
    return subprocess.run(
        [*TORCHRUN, "-m", "mobillama", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=toy_run.environment(),
    )


def test_a_run_of_two_processes_is_repeated_by_two_and_compared_by_one(tmp_path):
    recipe = toy_run.write_toy(tmp_path)
    assert toy_run.run("prepare", recipe).returncode == 0
    trained = by_two("train", recipe)
    assert trained.returncode == 0, trained.stderr
    run = tmp_path / "run"
    # Drawn by chance, and by both processes alike.
    repeated = by_two("replay", run, "--spot-check", 1, "--json")
    assert repeated.returncode == 0, repeated.stderr
    (outcome,) = json.loads(repeated.stdout)
    assert outcome["equal"] and outcome["losses"] == 5 and outcome["tensors"] > 0
    alone = subprocess.run(
        [sys.executable, "-m", "mobillama", "replay", str(run), "--from", "0", "--to", "5"],
        capture_output=True, text=True, env=toy_run.environment(),
    )  # fmt: skip
    assert "world_size 2 then, 1 now" in Ledger(run / LEDGER).entries()[-1]["differences"], alone.stderr
    assert [entry["event"] for entry in Ledger(run / LEDGER).entries()[-2:]] == ["replay"] * 2
