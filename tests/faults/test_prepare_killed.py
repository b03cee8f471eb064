"""A preparation killed at any stage goes on where it was, and ends with the bytes of one never stopped."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from mobillama.data import prepare
from mobillama.data.recipe import CorpusSection

SOURCE = Path(__file__).parents[2] / "src"
PROGRAM = """
import sys
from contextlib import suppress
from pathlib import Path
from mobillama.data import prepare
from mobillama.data.recipe import CorpusSection
if __name__ == "__main__":
    prepare(CorpusSection.model_validate_json(Path(sys.argv[1]).read_text()))
"""


def recipe(root: Path, directory: Path) -> CorpusSection:
    """Return a recipe with five files to read and several shards to write."""
    subset = {"name": "s", "kind": "jsonl", "paths": ["*.jsonl"], "license": "CC0"}
    return CorpusSection.model_validate(
        {
            "directory": directory,
            "root": root,
            "subsets": [subset],
            "shard_bytes": 20_000,
            "heldout_bytes": 5000,
            "workers": 2,
            "tokenizer": {"vocab_size": 500},
        }
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five files of 40 invented documents."""
    root, generator = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    for file in range(5):
        words = ["".join(generator.choice(list("abcdefghijklm"), 6)) for _ in range(40 * 100)]
        texts = [" ".join(words[n * 100 : n * 100 + 100]) for n in range(40)]
        (root / f"{file}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return root


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the corpus that was never stopped."""
    return all_files(prepare(recipe(inputs, tmp_path_factory.mktemp("calm") / "corpus")))


def all_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file by relative path."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def kill_when_there(section: CorpusSection, folder: Path, sign: Path) -> None:
    """Start a preparation, kill it as soon as ``sign`` exists, and see its workers go with it."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "recipe.json").write_text(section.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, folder / "program.py", folder / "recipe.json"],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        stderr=subprocess.DEVNULL,
    )
    while not sign.exists():
        with suppress(subprocess.TimeoutExpired):
            pytest.fail(f"ended with {process.wait(0.01)} before it could be killed")
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs(workers, timeout=20)[1]


@pytest.mark.parametrize("sign", ["reading/completions/00001", "shards/00000.tokens"])
def test_a_killed_preparation_ends_with_the_same_bytes(
    sign: str, inputs: Path, undisturbed: dict, tmp_path: Path
):
    section = recipe(inputs, tmp_path / "corpus")
    kill_when_there(section, tmp_path, tmp_path / ".corpus.preparing" / sign)
    assert not (tmp_path / "corpus").exists()
    assert all_files(prepare(section)) == undisturbed
    assert not (tmp_path / ".corpus.preparing").exists()


def test_finished_tasks_are_not_done_again(inputs: Path, tmp_path: Path):
    section = recipe(inputs, tmp_path / "corpus")
    work = tmp_path / ".corpus.preparing"
    kill_when_there(section, tmp_path, work / "matching" / "completions" / "00000")
    mark = '{"detail":"","id":"left by the first attempt","reason":"mark","subset":"s"}\n'
    (work / "read" / "00000" / "dropped.jsonl").write_text(mark)
    manifest = json.loads((prepare(section) / "manifest.json").read_text())
    assert manifest["subsets"]["s"]["dropped"] == {"mark": 1}
