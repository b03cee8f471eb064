"""Results of evaluations: verified, described, and on the card beside what training has seen of them."""

import json

import pytest
from fixture_run import make_corpus, make_run

from mobillama.core import records
from mobillama.core.errors import UserError
from mobillama.evaluate.comparison import compare_results
from mobillama.lineage import cards
from mobillama.lineage.inspect import describe
from mobillama.lineage.results import write_result
from mobillama.lineage.verify import verify


@pytest.fixture
def run(tmp_path):
    """A run with a result of one task, as `mobillama evaluate` writes it, and its answers."""
    run = make_run(tmp_path / "run", make_corpus(tmp_path / "corpus"))
    task = {
        "metric": "acc", "value": 0.5123, "interval": [0.49, 0.53], "questions": 2, "of": 1838,
        "num_fewshot": 0, "logs": ["piqa-0123456789ab.jsonl"],
    }  # fmt: skip
    result = {
        "kind": "evaluation", "finished_at": records.now(), "folder": "run-step-400",
        "model": {"name": "run/step-00000400", "identity": "a" * 64, "step": 400, "backend": "torch"},
        "settings": {"limit": None}, "environment": {}, "tasks": {"piqa": task},
    }  # fmt: skip
    folder = run / "evaluations" / "run-step-400"
    folder.mkdir(parents=True)
    records.append_sealed(folder / "piqa-0123456789ab.jsonl", [{"id": n, "responses": [-n]} for n in (1, 2)])
    (run / "evaluations" / "run-step-400.json").write_text(json.dumps(records.sealed(result)))
    return run


def test_a_changed_result_and_a_changed_answer_are_named(run):
    assert verify(run) == []
    for path in (run / "evaluations").rglob("*.json*"):
        before = path.read_text()
        path.write_text(before.replace("2", "3", 1))
        assert [problem.path for problem in verify(run)] == [path]
        assert [problem.path for problem in verify(run / "evaluations")] == [path]
        path.write_text(before)
    (run / "evaluations" / "run-step-400" / "piqa-0123456789ab.jsonl").unlink()
    assert [problem.what for problem in verify(run)] == ["missing"]


def test_answers_with_a_changed_line_are_not_read(run):
    log = run / "evaluations" / "run-step-400" / "piqa-0123456789ab.jsonl"
    assert [entry["id"] for entry in records.read_sealed(log)] == [1, 2]
    log.write_text(log.read_text().replace("-2", "-1"))
    with pytest.raises(UserError, match="line 2 was changed"):
        records.read_sealed(log)


def test_a_changed_result_is_not_compared(run):
    path = run / "evaluations" / "run-step-400.json"
    path.write_text(path.read_text().replace("0.5123", "0.9123"))
    with pytest.raises(UserError, match="changed after it was written"):
        compare_results(path, path)


def test_a_result_is_described_and_whether_it_is_intact(run):
    path = run / "evaluations" / "run-step-400.json"
    found = describe(path)
    assert found.kind == "result, evaluation" and found.intact
    assert found.facts["piqa"] == "acc 0.512 [0.490, 0.530], 2 questions"
    assert found.parents[0] == "model run/step-00000400 (aaaaaaaaaaaa)"
    path.write_text(path.read_text().replace("0.5123", "0.9123"))
    assert describe(path).intact is False


def test_the_card_shows_scores_beside_what_training_has_seen_of_the_benchmark(run):
    text = cards.write(run)[0].read_text()
    assert "| piqa | acc | 51.23 | 49.0 to 53.0 | 2 of 1,838 | 400 |\n" in text
    rows = [{"file": "piqa/valid.jsonl", "items": 1838, "contaminated": 3, "longest_words": 15, "share": 0.0}]
    rows += [{"file": "race/dev.jsonl", "items": 10, "contaminated": 9, "longest_words": 15, "share": 0.9}]
    path = write_result(
        run, "contamination", "benchmarks", benchmark="benchmarks", corpus="c" * 64, files=rows
    )
    text = cards.write(run)[0].read_text()
    assert "| piqa | acc | 51.23 | 49.0 to 53.0 | 2 of 1,838 | 400 | 3 of 1,838 |\n" in text
    assert verify(run) == []
    found = describe(path)
    assert found.facts["race/dev.jsonl"] == "9 of 10 items in the training data"
    assert found.summary.startswith("items of benchmarks; finished ") and found.parents == [
        "corpus cccccccccccc"
    ]
    assert found.make_again == found.made_by["command"]
