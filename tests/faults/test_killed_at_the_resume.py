"""A run that is killed again while it resumes: between the ledger's line and the cut of the records."""

import pytest
from small_runs import toy_corpus, toy_recipe

from mobillama.core.errors import UserError
from mobillama.core.records import Ledger, read_jsonl
from mobillama.lineage.verify import verify
from mobillama.train import train
from mobillama.train.metrics import Recorder


class Killed(BaseException):
    """Stands for SIGKILL at one chosen place: nothing catches it."""


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A recipe whose run was killed at step 8, after the checkpoint of step 6."""
    toy_corpus(tmp_path)
    recipe = toy_recipe(tmp_path)
    write = Recorder.write

    def until_step_8(self, record, step, **values):
        write(self, record, step, **values)
        if step == 8:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "write", until_step_8)
        with pytest.raises(Killed):
            train(recipe)
    return recipe


def test_records_are_what_the_ledger_says_before_and_after_the_cut(interrupted, monkeypatch):
    run = interrupted.recipe.run_dir
    assert len(read_jsonl(run / "metrics.jsonl")) == 8 and verify(run) == []

    def killed(self, kept):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "cut", killed)
        with pytest.raises(Killed):
            train(interrupted)
    assert Ledger(run / "ledger.jsonl").entries()[-1]["event"] == "resume"
    assert len(read_jsonl(run / "metrics.jsonl")) == 8
    assert verify(run) == []
    train(interrupted)
    assert [line["step"] for line in read_jsonl(run / "metrics.jsonl")] == list(range(1, 13))
    assert verify(run) == []


def test_an_old_metric_changed_before_a_resume_is_refused(interrupted):
    metrics = interrupted.recipe.run_dir / "metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text(text.replace('"step": 2', '"step": 1', 1))
    with pytest.raises(UserError, match=r"metrics\.jsonl: content differs from the ledger"):
        train(interrupted)
    metrics.write_text(text)
    train(interrupted)
