"""The index under faults: killed builds, flipped bits, another corpus, two builders."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from small_corpora import make_corpus, sentences

from mobillama.core import atomic
from mobillama.core.errors import UserError
from mobillama.data import Corpus
from mobillama.lineage.index import Index, build, index_directory, open_or_build

PART_TOKENS = 400
BUILD = (
    "import sys; from pathlib import Path; from mobillama.data import Corpus;"
    "from mobillama.lineage.index import build;"
    f"print('go', flush=True); build(Corpus(Path(sys.argv[1])), part_tokens={PART_TOKENS})"
)
KILLS = int(os.environ.get("MOBILLAMA_KILLS", "3"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    source = random.Random(3)
    return make_corpus(folder, {"web": sentences(source, 150), "book": sentences(source, 50)}).directory


@pytest.fixture
def corpus(prepared, tmp_path):
    return Corpus(shutil.copytree(prepared, tmp_path / "corpus"))


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_killed_at_any_moment_the_next_build_ends_with_identical_bytes(corpus):
    undisturbed = contents(build(corpus, part_tokens=PART_TOKENS))
    directory = index_directory(corpus.directory)
    assert len(undisturbed) > 20
    started_at = time.monotonic()
    shutil.rmtree(directory)
    build(corpus, part_tokens=PART_TOKENS)
    build_s = time.monotonic() - started_at
    source = random.Random(4)
    for _ in range(KILLS):
        shutil.rmtree(directory)
        command = [sys.executable, "-c", BUILD, str(corpus.directory)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(source.uniform(0, build_s))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if not (directory / "manifest.json").exists():
            with pytest.raises(UserError):
                Index(corpus)
        build(corpus, part_tokens=PART_TOKENS)
        assert contents(directory) == undisturbed
        assert Index(corpus).occurrences(b"cat", 0)[0] > 0


def test_parts_that_were_whole_are_not_built_again(corpus):
    directory = build(corpus, part_tokens=PART_TOKENS)
    (directory / "manifest.json").unlink()
    parts = sorted(directory.rglob("*.suffixes"))
    parts[-1].unlink()
    inodes = [path.stat().st_ino for path in parts[:-1]]
    build(corpus, part_tokens=PART_TOKENS)
    assert [path.stat().st_ino for path in parts[:-1]] == inodes and parts[-1].exists()


def test_a_flipped_bit_anywhere_in_the_index_is_refused(corpus):
    directory = build(corpus, part_tokens=PART_TOKENS)
    source = random.Random(5)
    parts = sorted(path for path in directory.glob("*/*") if path.is_file())
    for path in [*parts[::7], directory / "plan.json", directory / "manifest.json"]:
        before = path.read_bytes()
        flipped = bytearray(before)
        flipped[source.randrange(len(flipped))] ^= 1 << source.randrange(7)
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=path.name):
            Index(corpus)
        path.write_bytes(before)
        Index(corpus)


def test_a_truncated_or_missing_part_is_refused(corpus):
    directory = build(corpus, part_tokens=PART_TOKENS)
    part = sorted(directory.rglob("*.suffixes"))[2]
    os.truncate(part, part.stat().st_size - 4)
    with pytest.raises(UserError, match=part.name):
        Index(corpus)
    part.unlink()
    with pytest.raises(UserError, match=f"{part.name}: missing"):
        Index(corpus)


def test_the_index_of_another_corpus_is_not_used_but_built_anew(corpus, tmp_path):
    build(corpus, part_tokens=PART_TOKENS)
    shutil.rmtree(corpus.directory)
    (tmp_path / "other").mkdir()
    other = make_corpus(tmp_path / "other", {"web": sentences(random.Random(9), 30)})
    shutil.move(other.directory, corpus.directory)
    other = Corpus(corpus.directory)
    with pytest.raises(UserError, match="is of another corpus"):
        Index(other)
    index = open_or_build(other)
    assert {path.parent.name for path in index.directory.rglob("*.suffixes")} == {"web"}


def test_a_corpus_with_a_flipped_bit_is_not_indexed(corpus):
    shard = corpus.directory / "train" / "web" / "00000.tokens"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"00000\.tokens: content differs"):
        build(corpus)


def test_a_second_builder_refuses(corpus):
    directory = index_directory(corpus.directory)
    with atomic.exclusive(directory), pytest.raises(UserError, match="is working here"):
        build(corpus)
