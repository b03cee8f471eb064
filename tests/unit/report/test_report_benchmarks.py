"""Benchmark results of a run's checkpoints become trajectories and a table in its report."""

import json

import pytest
from fixture_run import make_corpus, make_run
from test_report_page import Page

from mobillama import report
from mobillama.core.errors import UserError
from mobillama.core.records import sealed


def write_result(run, step, *, accuracy, name=None, finished_at="2026-01-01T00:00:00Z", backend="torch"):
    """Write what `mobillama evaluate` does of one checkpoint, as far as the report reads it."""
    asked = {"questions": 50, "of": 1838, "num_fewshot": 0}
    interval = [accuracy - 0.1, accuracy + 0.1]
    result = {
        "kind": "evaluation",
        "model": {"name": f"run/step-{step:08d}", "backend": backend, "step": step},
        "finished_at": finished_at,
        "tasks": {
            "piqa": {**asked, "metric": "acc", "value": accuracy, "interval": interval},
            "wikitext": {**asked, "metric": "bits_per_byte", "value": 1.25, "interval": None},
        },
    }
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name or step}.json"
    path.write_text(json.dumps(sealed(result)))
    return path


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", make_corpus(tmp_path / "corpus"))


def test_trajectories_are_the_results_by_step_and_the_newest_of_a_step_counts(run):
    write_result(run, 400, accuracy=0.6)
    write_result(run, 50, accuracy=0.5, finished_at="2026-01-02T00:00:00Z")
    write_result(run, 50, accuracy=0.4, name="older")
    write_result(run, 400, accuracy=0.1, name="device", backend="engine", finished_at="2026-01-03T00:00:00Z")
    page = Page(report.write(run).read_text(encoding="utf-8"))
    found = page.curves[0]["benchmarks"]
    assert found["step"] == [50, 400]
    assert found["tasks"] == {"piqa": [50.0, 60.0], "wikitext": [1.25, 1.25]}
    assert len(found["tokens"]) == len(found["elapsed_s"]) == 2
    assert "piqa acc 0 60.00 50.0 to 70.0 50 of 1,838 400" in page.text
    assert "Benchmarks" in page.text


def test_without_results_there_is_no_plot(run):
    page = Page(report.write(run).read_text(encoding="utf-8"))
    assert page.curves[0]["benchmarks"] is None
    assert "Benchmarks" not in page.text


def test_a_changed_result_is_refused(run):
    path = write_result(run, 50, accuracy=0.5)
    path.write_text(path.read_text().replace('"value": 0.5', '"value": 0.9'))
    with pytest.raises(UserError, match=r"50\.json: was changed after it was written"):
        report.write(run)


def test_scores_stand_beside_how_many_items_the_training_data_hold(run):
    write_result(run, 400, accuracy=0.6)
    row = {"file": "valid.jsonl", "items": 1838, "contaminated": 9}
    rows = [{**row, "file": f"piqa/{row['file']}", "contaminated": 3}, {**row, "file": "race/dev.jsonl"}]
    for name, day, files in (("piqa", 1, [row]), ("benchmarks", 2, rows)):
        counted = {"kind": "contamination", "finished_at": f"2026-01-0{day}T00:00:00Z", "benchmark": name}
        path = run / "evaluations" / f"contamination-{name}.json"
        path.write_text(json.dumps(sealed({**counted, "files": files})))
    # The same file was counted twice, and the later count is the one of the whole folder.
    assert "400 3 of 1,838" in Page(report.write(run).read_text(encoding="utf-8")).text
    path.write_text(path.read_text().replace('"contaminated": 3', '"contaminated": 0'))
    with pytest.raises(UserError, match=r"contamination-benchmarks\.json: was changed"):
        report.write(run)


def test_two_results_at_one_step_are_laid_together_and_more_questions_count(run):
    whole = write_result(run, 400, accuracy=0.6, name="whole")
    result = json.loads(whole.read_text())
    for task, fewer in (("piqa", 10), ("race", 5)):
        tasks = {task: {**result["tasks"]["piqa"], "questions": fewer, "value": 0.9}}
        later = sealed({**result, "tasks": tasks, "finished_at": "2026-01-02T00:00:00Z"})
        (whole.parent / f"{task}.json").write_text(json.dumps(later))
    tasks = Page(report.write(run).read_text(encoding="utf-8")).curves[0]["benchmarks"]["tasks"]
    assert tasks == {"piqa": [60.0], "wikitext": [1.25], "race": [90.0]}
