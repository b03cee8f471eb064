import pytest

from mobillama.train.recipe import ScheduleSection
from mobillama.train.schedule import BatchPlan, rate_factor


def test_cosine_warms_up_and_ends_where_the_paper_says():
    paper = ScheduleSection(kind="cosine", warmup_steps=2000, final_factor=0.1)
    assert rate_factor(paper, 1000, 10_000) == 0.5
    assert rate_factor(paper, 2000, 10_000) == 1.0
    assert rate_factor(paper, 6000, 10_000) == pytest.approx(0.55)  # half way between 1 and 0.1
    assert rate_factor(paper, 10_000, 10_000) == pytest.approx(0.1)


def test_warmup_stable_decay_holds_and_then_falls_in_a_line():
    schedule = ScheduleSection(kind="wsd", warmup_steps=10, decay_share=0.4, final_factor=0.0)
    factors = [rate_factor(schedule, step, 100) for step in range(1, 101)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert set(factors[10:60]) == {1.0}
    assert factors[79] == pytest.approx(0.5)
    assert factors[99] == 0.0


@pytest.mark.parametrize("ramp_steps", [0, 4, 7, 40])
def test_steps_take_every_sample_once_in_order(ramp_steps):
    plan = BatchPlan(batch=16, ramp_steps=ramp_steps)
    taken = [
        index
        for step in range(1, 60)
        for index in range(plan.first_sample(step), plan.first_sample(step) + plan.samples(step))
    ]
    assert taken == list(range(len(taken)))
    sizes = [plan.samples(step) for step in range(1, 60)]
    assert sizes == sorted(sizes) and sizes[-1] == 16
    assert sizes[0] == (4 if ramp_steps else 16)


@pytest.mark.parametrize("ramp_steps", [0, 7])
@pytest.mark.parametrize("samples", [1, 15, 16, 17, 160, 161])
def test_steps_for_is_the_fewest_that_suffice(ramp_steps, samples):
    plan = BatchPlan(batch=16, ramp_steps=ramp_steps)
    by_counting = next(step for step in range(1, 100) if plan.first_sample(step + 1) >= samples)
    assert plan.steps_for(samples) == by_counting
