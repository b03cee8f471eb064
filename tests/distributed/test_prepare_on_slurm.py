"""Preparation through Slurm's own commands, played by shell scripts that run each job at once."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from mobillama.core.errors import UserError
from mobillama.data import prepare
from mobillama.data.recipe import CorpusSection

SOURCE = Path(__file__).parents[2] / "src"
# Runs every task of the array, one after another; a failed task does not stop the others, as on a cluster.
SBATCH = """#!/bin/bash
script="${@: -1}"
echo "$@" >> "$SLURM_PLAY/calls"
grep -q merge_stats "$script" && { echo "Submitted batch job 43"; exit 0; }
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=42 SLURM_NODELIST=node RUN_OFFSET=0 bash "$script" \\
    >> "$SLURM_PLAY/output" 2>&1
done
echo "Submitted batch job 42"
"""
PLAYERS = {
    "sbatch": SBATCH,
    "srun": '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n',
    "scontrol": "#!/bin/bash\necho node\n",
    "squeue": "#!/bin/bash\n",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the commands of a cluster of one node, first in the path."""
    play = tmp_path / "slurm"
    play.mkdir()
    for name, text in PLAYERS.items():
        (play / name).write_text(text)
        (play / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{play}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_PLAY", str(play))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    return play


def recipe(root: Path, name: str, **changes: object) -> CorpusSection:
    """Return a recipe for ``root/data.jsonl``, written when it is missing."""
    if not (root / "data.jsonl").exists():
        generator = np.random.default_rng(0)
        words = ["".join(generator.choice(list("abcdefghijklm"), 6)) for _ in range(3000)]
        texts = [" ".join(words[n : n + 100]) for n in range(0, 3000, 100)]
        (root / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    subset = {"name": "s", "kind": "jsonl", "paths": ["data.jsonl"], "license": "CC0"}
    values = {"directory": root / name, "root": root, "subsets": [subset], "tokenizer": {"vocab_size": 400}}
    return CorpusSection.model_validate(values | changes)


@pytest.mark.slow
def test_slurm_makes_the_bytes_that_local_workers_make(slurm: Path, tmp_path: Path):
    local = prepare(recipe(tmp_path, "local"))
    remote = prepare(recipe(tmp_path, "remote", executor={"kind": "slurm", "partition": "cpu"}))
    hashes = [
        {
            path.relative_to(corpus): hashlib.sha256(path.read_bytes()).digest()
            for path in corpus.rglob("*")
            if path.is_file()
        }
        for corpus in (local, remote)
    ]
    assert hashes[0] == hashes[1]
    assert len((slurm / "calls").read_text().splitlines()) == 12


@pytest.mark.slow
def test_tasks_that_fail_on_slurm_are_an_error_that_says_where_to_look(slurm: Path, tmp_path: Path):
    section = recipe(tmp_path, "remote", executor={"kind": "slurm"})
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write("{oops}\n")
    with pytest.raises(UserError, match=r"reading: 1 of 1 tasks ended .* logs are in .*preparing/reading"):
        prepare(section)
    logs = (tmp_path / ".remote.preparing" / "reading" / "logs" / "task_00000.log").read_text()
    assert "data.jsonl:31: not JSON" in logs
