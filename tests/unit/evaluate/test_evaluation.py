"""From a checkpoint to a result: like lm-eval's own model, resumable, paired."""

import io
import json
import shutil

import pytest
from fixture_checkpoint import write_checkpoint
from rich.console import Console

from mobillama.core.errors import UserError
from mobillama.core.records import read_jsonl
from mobillama.evaluate import comparison, evaluation, subjects, tables, tasks, verb
from mobillama.report.contamination import Contamination

LIMIT = 12
TASKS = ["piqa", "winogrande", "truthfulqa_mc2", "crows_pairs_english"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "tiny" / "checkpoints" / "step-00000007"
    write_checkpoint(directory, max_position_embeddings=640)
    return directory


@pytest.fixture(scope="module")
def chosen(shared_data):
    return tasks.load(TASKS, data_dir=shared_data / "benchmarks")


@pytest.fixture(scope="module")
def measured(checkpoint, chosen, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    subject = subjects.open_subject(str(checkpoint))
    return out, evaluation.evaluate(subject, chosen, out, limit=LIMIT)


def answers(out, result):
    """Return the logged lines of a result by task."""
    return {
        name: read_jsonl(out / result["folder"] / task["logs"][0]) for name, task in result["tasks"].items()
    }


def test_log_likelihoods_are_those_of_lm_evals_own_model(checkpoint, chosen, measured):
    from lm_eval.models.huggingface import HFLM

    reference = HFLM(pretrained=str(checkpoint), device="cpu", batch_size=8, dtype="float32")
    logged = answers(*measured)
    for name, task in chosen.tasks.items():
        task.set_fewshot_seed(1234)  # as lm-eval's simple_evaluate does
        task.build_all_requests(limit=LIMIT)
        expected = reference.loglikelihood(task.instances, disable_tqdm=True)
        found = [tuple(response) for entry in logged[name] for response in entry["responses"]]
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=5e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_result_says_what_was_measured_and_how_sure_it_is(measured, checkpoint):
    out, result = measured
    assert json.loads((out / f"{result['folder']}.json").read_text()) == result
    assert result["model"]["name"] == "tiny/step-00000007" and result["model"]["step"] == 7
    assert result["data"]["piqa/valid.jsonl"]
    for name in TASKS:
        task = result["tasks"][name]
        low, high = task["interval"]
        assert low <= task["value"] <= high and task["questions"] == LIMIT
    right = [entry["scores"]["acc_norm"] for entry in answers(out, result)["piqa"]]
    assert result["tasks"]["piqa"]["value"] == pytest.approx(sum(right) / LIMIT)
    assert result["averages"] == {"paper": None, "without_crows_pairs": None}


def test_a_stopped_evaluation_goes_on_where_it_was(checkpoint, chosen, measured, tmp_path, monkeypatch):
    out, whole = measured
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    log = tmp_path / whole["folder"] / whole["tasks"]["piqa"]["logs"][0]
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # killed within a line
    subject = subjects.open_subject(str(checkpoint))
    asked = []
    score = subject.lm.scorer.score
    monkeypatch.setattr(
        subject.lm.scorer, "score", lambda questions: (asked.append(len(questions)), score(questions))[1]
    )
    resumed = evaluation.evaluate(subject, chosen, tmp_path, limit=LIMIT)
    assert sum(asked) == LIMIT - 5
    assert resumed["tasks"] == whole["tasks"]
    assert [entry["id"] for entry in read_jsonl(log)] == list(range(LIMIT))


def test_a_larger_limit_asks_only_the_rest(checkpoint, chosen, measured, tmp_path):
    out, whole = measured
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    subject = subjects.open_subject(str(checkpoint))
    more = evaluation.evaluate(subject, chosen, tmp_path, limit=LIMIT + 3)
    assert answers(tmp_path, more)["piqa"][:LIMIT] == answers(out, whole)["piqa"]
    assert more["tasks"]["piqa"]["questions"] == LIMIT + 3


def test_two_models_are_compared_question_by_question(chosen, measured, tmp_path_factory):
    out, result = measured
    other = tmp_path_factory.mktemp("other") / "model"
    write_checkpoint(other, max_position_embeddings=640, num_hidden_layers=2)
    second = evaluation.evaluate(subjects.open_subject(str(other)), chosen, out, limit=LIMIT - 2)
    found = comparison.compare_results(out / f"{result['folder']}.json", out / f"{second['folder']}.json")
    assert found.tests["piqa"].questions == LIMIT - 2
    a, b = (
        [entry["scores"]["acc_norm"] for entry in answers(out, each)["piqa"]][: LIMIT - 2]
        for each in (result, second)
    )
    assert found.tests["piqa"].difference == pytest.approx((sum(a) - sum(b)) / (LIMIT - 2))
    assert found.tests["piqa"].only_a == sum(x > y for x, y in zip(a, b, strict=True))
    tables.comparison_table(found)
    tables.paper_table([result])


def test_scores_stand_beside_what_the_training_data_hold_of_the_benchmark(measured):
    _, result = measured
    texts = []
    for contamination in ({"piqa": Contamination(3, 1838)}, {}):
        console = Console(file=io.StringIO(), record=True, width=160)
        console.print(tables.result_table(result, contamination))
        texts.append(console.export_text())
    assert "3 of 1,838" in texts[0] and "training data" in texts[0]
    assert "3 of 1,838" not in texts[1] and "training data" not in texts[1]


def test_results_of_other_settings_are_not_compared(measured, checkpoint, shared_data, tmp_path):
    out, result = measured
    changed = tasks.load(["winogrande"], data_dir=shared_data / "benchmarks", num_fewshot=1)
    second = evaluation.evaluate(subjects.open_subject(str(checkpoint)), changed, tmp_path, limit=2)
    paths = out / f"{result['folder']}.json", tmp_path / f"{second['folder']}.json"
    with pytest.raises(UserError, match="asked differently"):
        comparison.compare_results(*paths)


def test_every_checkpoint_of_a_run_is_measured_in_order(checkpoint, shared_data, tmp_path):
    run = tmp_path / "run"
    for step in (20, 3):
        shutil.copytree(checkpoint, run / "checkpoints" / f"step-{step:08d}")
    (run / "run.toml").write_text("")
    request = verb.Request(
        str(run), ["piqa"], data_dir=shared_data / "benchmarks", limit=2, all_checkpoints=True
    )
    names = [result["model"]["name"] for result in verb.run(request)]
    assert names == ["run/step-00000003", "run/step-00000020"]
    assert len(list((run / "evaluations" / "prompts").iterdir())) == 1


@pytest.mark.parametrize("model", ["nowhere", "nowhere.gguf"])
def test_a_model_that_is_not_there_is_named(model):
    with pytest.raises(UserError, match=model):
        subjects.open_subject(model)
