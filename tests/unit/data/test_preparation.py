"""Preparation: nothing lost, nothing leaked, all counted, the same bytes from any number of workers."""

import hashlib
import json
import lzma
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard
from conftest import ODD_TEXTS, small_section, write_jsonl

from mobillama.core.errors import UserError
from mobillama.core.records import check_files
from mobillama.data import Corpus, prepare
from mobillama.data.corpus import SPLITS
from mobillama.data.preparation import resume_or_clear
from mobillama.data.sources import plan_units
from mobillama.data.workplace import Workplace

SOURCE = Path(__file__).parents[3] / "src"


def rows_of(path: Path) -> list[dict]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def all_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file by relative path."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_every_document_comes_back_as_it_was(small_corpus: Corpus, small_inputs: Path):
    expected = {
        f"novels.jsonl:{n}": row["text"] for n, row in enumerate(rows_of(small_inputs / "novels.jsonl"), 1)
    }
    expected |= {str(row["key"]): row["text"] for row in rows_of(small_inputs / "notes.jsonl")}
    found = {}
    for subset in small_corpus.subsets:
        for split in SPLITS:
            for document in small_corpus.tokens(subset, split).documents():
                text = small_corpus.text(document)
                found[document.id] = text
                assert document.size_bytes == len(text.encode())
                assert document.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert found == expected


def test_tokens_are_those_of_the_tokenizer_itself_in_any_script(small_corpus: Corpus):
    for subset in small_corpus.subsets:
        stream = small_corpus.tokens(subset)
        for document in stream.documents():
            tokens = stream.read(document.start, document.stop)
            text = small_corpus.text(document)
            assert tokens[:-1].tolist() == small_corpus.tokenizer.encode(text).ids
            assert tokens[-1] == small_corpus.end_of_text_id
            assert small_corpus.end_of_text_id not in tokens[:-1]
    assert any("<|endoftext|>" in text for text in ODD_TEXTS)


def test_a_document_is_found_by_place_by_id_and_by_source(small_corpus: Corpus):
    stream = small_corpus.tokens("novels")
    assert len(stream.shard_bounds()) > 3
    documents = list(stream.documents())
    assert documents[0].start == 0
    assert documents[-1].stop == len(stream)
    for document, following in pairwise(documents):
        assert following.start == document.stop
        assert small_corpus.document_at("novels", "train", document.start) == document
        assert small_corpus.document_at("novels", "train", document.stop - 1) == document
    assert small_corpus.find(documents[9].id) == [documents[9]]
    shelf = small_corpus.find(documents[9].source)
    assert len(shelf) == 6
    assert {document.license for document in shelf} == {"CC0"}
    with pytest.raises(UserError, match="did you mean novels"):
        small_corpus.tokens("novel")


def test_whole_groups_are_held_out_and_reach_their_bytes(small_corpus: Corpus, small_inputs: Path):
    titles = {
        f"novels.jsonl:{n}": row["title"] for n, row in enumerate(rows_of(small_inputs / "novels.jsonl"), 1)
    }
    sides = {
        split: {titles[document.id] for document in small_corpus.tokens("novels", split).documents()}
        for split in SPLITS
    }
    assert not sides["train"] & sides["heldout"]
    assert sides["train"] | sides["heldout"] == set(titles.values())
    for subset in small_corpus.subsets:
        held = sum(document.size_bytes for document in small_corpus.heldout(subset))
        total = held + sum(d.size_bytes for d in small_corpus.tokens(subset).documents())
        assert held >= min(3000, total / 10)


def test_held_out_text_is_recorded_with_what_compressors_need(small_corpus: Corpus):
    for subset in small_corpus.subsets:
        text = b"".join(small_corpus.text(held.document).encode() for held in small_corpus.heldout(subset))
        assert small_corpus.manifest["heldout"][subset] == {
            "bytes": len(text),
            "xz_bytes": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
            "zstd_bytes": len(zstandard.ZstdCompressor(level=19).compress(text)),
        }


def test_the_manifest_counts_what_the_files_hold(small_corpus: Corpus):
    for subset, counts in small_corpus.manifest["subsets"].items():
        for split in SPLITS:
            documents = list(small_corpus.tokens(subset, split).documents())
            assert counts[split] == {
                "documents": len(documents),
                "tokens": sum(document.length for document in documents),
                "size_bytes": sum(document.size_bytes for document in documents),
            }
    assert check_files(small_corpus.directory) == []


def test_the_manifest_names_the_inputs_but_neither_times_nor_places(small_corpus: Corpus, small_inputs: Path):
    names = {entry["path"]: entry["sha256"] for entry in small_corpus.manifest["inputs"]}
    assert names == {
        name: hashlib.sha256((small_inputs / name).read_bytes()).hexdigest()
        for name in ("novels.jsonl", "notes.jsonl")
    }
    text = (small_corpus.directory / "manifest.json").read_text(encoding="utf-8")
    assert str(small_inputs) not in text
    assert "workers" not in text


def test_one_worker_and_another_folder_give_the_same_bytes(
    small_corpus: Corpus, small_inputs: Path, tmp_path: Path
):
    again = prepare(small_section(small_inputs, tmp_path / "elsewhere", workers=1))
    assert all_files(again) == all_files(small_corpus.directory)


def test_a_corpus_that_is_there_is_left_alone_and_other_files_are_never_overwritten(
    small_corpus: Corpus, small_inputs: Path, tmp_path: Path
):
    before = (small_corpus.directory / "manifest.json").stat().st_mtime_ns
    prepare(small_section(small_inputs, small_corpus.directory))
    assert (small_corpus.directory / "manifest.json").stat().st_mtime_ns == before
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="holds files, but no corpus"):
        prepare(small_section(small_inputs, tmp_path))
    assert (tmp_path / "thesis.tex").exists()


def test_an_attempt_at_the_same_corpus_is_kept_and_another_one_cleared(small_inputs: Path, tmp_path: Path):
    section, work = small_section(small_inputs, tmp_path / "corpus"), Workplace(tmp_path / "work")
    units = plan_units(section)
    changed = [replace(units[0], files=(replace(units[0].files[0], modified_ns=1),)), *units[1:]]
    other = small_section(small_inputs, tmp_path / "corpus", heldout_bytes=1)
    resume_or_clear(work, section, units)
    for recipe, attempt, kept in ((section, units, True), (section, changed, False), (other, changed, False)):
        (work.folder("read") / "left.txt").touch()
        resume_or_clear(work, recipe, attempt)
        assert (work.folder("read") / "left.txt").exists() == kept
        assert work.units() == attempt


def test_a_corpus_counted_by_hand_and_workers_without_torch(tmp_path: Path):
    """Seven documents whose fates are known, prepared where importing torch is an error."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('a worker imported torch')", encoding="utf-8")
    generator = np.random.default_rng(5)
    words = ["".join(generator.choice(list("abcdefgh"), 6)) for _ in range(1200)]
    base = words[:200]
    nearly = [*base[:100], "changed", *base[101:]]
    kept = [" ".join(words[start : start + 200]) for start in range(200, 1200, 200)]
    rows = [" ".join(base), " ".join(base), " ".join(nearly).upper(), "short", "again and\n" * 40, *kept]
    write_jsonl(tmp_path / "seven.jsonl", [{"text": text} for text in rows])
    code = (
        "from pathlib import Path\n"
        "from mobillama.data import prepare\n"
        "from mobillama.data.recipe import CorpusSection\n"
        "if __name__ == '__main__':\n"
        f"    root = Path({str(tmp_path)!r})\n"
        "    subset = dict(name='s', kind='jsonl', paths=['seven.jsonl'], license='CC0')\n"
        "    prepare(CorpusSection(directory=root / 'corpus', root=root, workers=2, heldout_bytes=1000,\n"
        "                          tokenizer=dict(vocab_size=300), subsets=[subset]))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{SOURCE}"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    corpus = Corpus(tmp_path / "corpus")
    counts = corpus.manifest["subsets"]["s"]
    assert counts["dropped"] == {
        "exact_duplicate": 1,
        "near_duplicate": 1,
        "repeated_lines": 1,
        "too_short": 1,
    }
    assert counts["train"]["documents"] == 5
    assert counts["heldout"]["documents"] == 1
    dropped = {
        line["id"]: (line["reason"], line["detail"]) for line in rows_of(corpus.directory / "dropped.jsonl")
    }
    assert dropped["seven.jsonl:2"] == ("exact_duplicate", "like seven.jsonl:1")
    assert dropped["seven.jsonl:3"] == ("near_duplicate", "like seven.jsonl:1")
    assert dropped["seven.jsonl:4"] == ("too_short", "5 bytes, at least 100 wanted")
    assert dropped["seven.jsonl:5"][0] == "repeated_lines"
