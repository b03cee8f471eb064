"""Plans as pure functions of the step: learning-rate factor, samples of a step, checkpoint steps."""

import math
from dataclasses import dataclass

from .recipe import ScheduleSection

RAMP_STAIRS = 4


def rate_factor(schedule: ScheduleSection, step: int, total_steps: int) -> float:
    """Return the factor on every learning rate in ``step`` (1 .. ``total_steps``).

    Source: cosine as in Loshchilov & Hutter 2017; warm-up-stable-decay as in Hu et al. 2024 (MiniCPM),
    with a linear decay.
    """
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    final = schedule.final_factor
    if schedule.kind == "cosine":
        done = (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    decay_steps = max(1, round(schedule.decay_share * total_steps))
    left = max(0, total_steps - step)
    return final + (1 - final) * min(1.0, left / decay_steps)


@dataclass(frozen=True)
class BatchPlan:
    """How many samples each step takes; the batch may grow in stairs at the start of a run.

    Samples are counted over all ranks. ``batch`` is a multiple of ``quantum``.
    """

    batch: int
    ramp_steps: int = 0
    quantum: int = 1

    def samples(self, step: int) -> int:
        """Return the samples of ``step``, counted from 1."""
        if step > self.ramp_steps:
            return self.batch
        stair = (step - 1) * RAMP_STAIRS // self.ramp_steps + 1
        return max(self.quantum, self.batch * stair // RAMP_STAIRS // self.quantum * self.quantum)

    def first_sample(self, step: int) -> int:
        """Return the global index of the first sample of ``step``."""
        ramped = sum(self.samples(earlier) for earlier in range(1, min(step - 1, self.ramp_steps) + 1))
        return ramped + self.batch * max(0, step - 1 - self.ramp_steps)

    def steps_for(self, samples: int) -> int:
        """Return the fewest steps that take at least ``samples``."""
        step = max(
            1, self.ramp_steps + math.ceil((samples - self.first_sample(self.ramp_steps + 1)) / self.batch)
        )
        while step > 1 and self.first_sample(step) >= samples:
            step -= 1
        return step
