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
