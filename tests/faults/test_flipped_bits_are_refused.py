"""One flipped bit in each kind of file that we write: verify names the file, and the verb that would use it
refuses in one line, exit status 2.
"""

import contextlib
import io
import random
import shutil
import sys

import pytest
import toy_run

from mobillama.cli import main
from mobillama.lineage.verify import verify

PROMPT = "the model learns"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Everything that can be made of a toy recipe, each by its own verb."""
    folder = tmp_path_factory.mktemp("whole")
    recipe, device_file = toy_run.write_toy(folder), folder / "runs/toy.gguf"
    recipe.write_text(recipe.read_text().replace("workers = 1", 'workers = 1\non_bad = "quarantine"'))
    with (folder / "left.jsonl").open("a") as file:
        file.write('{"text": "short"}\nno document\n')  # to be dropped, and to be put into quarantine
    for verb in (
        ["prepare", recipe],
        ["train", recipe, "--set", "checkpoint.keep_states=9"],
        ["quantize", folder / "run", "--out", device_file, "--type", "f16"],
        ["generate", device_file, "--prompt", PROMPT, "--prompt-cache", folder / "cache", "--max-tokens", 2],
        ["convert", folder / "run", folder / "stock", "--stock-llama"],
        ["find", folder / "run", "--text", PROMPT],
        ["checkpoint", "pack", folder / "run"],
        ["report", folder / "run"],
        ["publish", folder / "run", "--repo", "a/b", "--dry-run", folder / "published"],
    ):
        assert call(*verb)[0] == 0, verb
    return folder


@pytest.fixture
def place(whole, tmp_path):
    """A copy to damage. The run's recipe names the first place, which is away while the copy is used."""
    shutil.copytree(whole, tmp_path / "copy")
    away = whole.with_name("away")
    whole.rename(away)
    yield tmp_path / "copy"
    away.rename(whole)


def call(*words):
    """Run a verb as ``mobillama`` would; return its exit status and what it wrote to standard error."""
    told, before = io.StringIO(), sys.argv
    sys.argv = ["mobillama", *map(str, words)]
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        status = end.code or 0
    else:
        status = 0
    finally:
        sys.argv = before
    return status, told.getvalue()


def flip(path, chance):
    data = bytearray(path.read_bytes())
    bit = chance.randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def uses(folder):
    """Return each kind of file with a verb that would use it: (glob, words of the verb)."""
    run, step = folder / "run", "step-00000020"
    train = ["train", run / "run.toml", "--set", f"corpus.directory={folder / 'corpus'}", "--set"]
    again, resume = [*train, f"run_dir={folder / 'new'}"], [*train, f"run_dir={run}"]
    generate = ["generate", f"{run}/checkpoints/{step}", "--prompt", PROMPT, "--max-tokens", 1]
    quantize = ["quantize", run, "--out", folder / "other.gguf"]
    on_device = ["generate", folder / "runs/toy.gguf", "--prompt", PROMPT, "--max-tokens", 1]
    cached = [*on_device, "--prompt-cache", folder / "cache"]
    see, find = ["seen", run, "--step", 3], ["find", run, "--text", PROMPT]
    table = [("corpus/" + name, again) for name in ("train/left/*.tokens", "heldout/right/*.tokens")]
    table += [("corpus/" + name, again) for name in ("tokenizer/*.json", "*.jsonl", "manifest.json")]
    table += [("corpus/train/*/*.documents", verb) for verb in (again, find, ["find", run, "--doc", "none"])]
    table += [("corpus/train/*/*.tokens", find), ("corpus/tokenizer/tokenizer.json", find)]
    records = ("run.toml", "origins.json", "environment.json", "plan.json", "metrics.jsonl", "samples.jsonl")
    for name in (*records, "evaluations.jsonl", "ledger.jsonl"):
        table += [(f"run/{name}", verb) for verb in (["report", run], ["card", run], see, resume)]
    for name in ("model.safetensors", "*.json"):
        table += [(f"run/checkpoints/{step}/{name}", verb) for verb in (generate, quantize, ["report", run])]
    table += [(f"run/checkpoints/{step}/*", ["convert", run, folder / "converted", "--stock-llama"])]
    table += [(f"run/states/{step}/*", resume)]
    table += [(f"run/packed/{step}.json", ["checkpoint", "export", run, 20, "--out", folder / "exported"])]
    table += [("corpus.index/*", find), ("corpus.index/*/*", find)]
    table += [("runs/toy.gguf", on_device), ("runs/toy.gguf.manifest.json", on_device), ("cache/*", cached)]
    table += [("stock/*", ["generate", folder / "stock", "--prompt", PROMPT])]
    table += [
        (
            f"published/{step}/*",
            ["convert", folder / "published" / step, folder / "converted", "--stock-llama"],
        )
    ]
    table += [
        (
            "published/main/*.*",
            ["convert", folder / "published" / "main", folder / "converted", "--stock-llama"],
        )
    ]
    return table


def test_every_kind_of_file_is_named_by_verify_and_refused_by_its_verb(place):
    chance = random.Random(7)
    assert verify(place) == []
    for pattern, verb in uses(place):
        found = (path for path in sorted(place.glob(pattern)) if not path.name.startswith("."))
        files = [path for path in found if path.is_file() and path.stat().st_size]
        assert files, pattern
        path = chance.choice(files)
        before = path.read_bytes()
        flip(path, chance)
        assert path in {problem.path for problem in verify(place)}, path
        status, told = call(*verb)
        assert status == 2, (path, verb, told)
        assert told.startswith("error: ") and len(told.strip().splitlines()) == 1, (path, verb, told)
        path.write_bytes(before)
    assert verify(place) == []


def test_a_flipped_object_of_the_packed_store_is_named_and_not_exported(place):
    chance = random.Random(8)
    for path in sorted(place.glob("run/packed/objects/*/*"))[::9]:
        before = path.read_bytes()
        flip(path, chance)
        assert path in {problem.path for problem in verify(place)}
        statuses = [
            call("checkpoint", "export", place / "run", step, "--out", place / f"out-{step}")[0]
            for step in (5, 10, 15, 20)
        ]
        assert 2 in statuses
        path.write_bytes(before)
        for folder in place.glob("out-*"):
            shutil.rmtree(folder)


def test_undamaged_every_one_of_these_verbs_works(place):
    done = {}
    for _, verb in uses(place):
        if str(verb) not in done and verb[-1] != "none":
            for folder in ("new", "converted", "exported"):
                shutil.rmtree(place / folder, ignore_errors=True)
            done[str(verb)] = call(*verb)
    assert {verb: told for verb, (status, told) in done.items() if status} == {}
