"""THE loop: one for every objective. Objective, batches and what happens between steps are arguments."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mobillama.core.errors import UserError

from . import precision, schedule
from .batches import Batches, ahead
from .objectives import IGNORED, Batch, Objective
from .recipe import RunRecipe
from .schedule import BatchPlan
from .state import TrainingState


class NotFiniteError(UserError):
    """A loss or gradient that is not a number; the weights are still those of the step before."""


@dataclass(frozen=True)
class Plan:
    """A run as pure functions of the step: how long, how many samples, at which rate."""

    recipe: RunRecipe
    total_steps: int
    batch: BatchPlan

    def rate(self, step: int) -> float:
        """Return the learning-rate factor of a step."""
        return schedule.rate_factor(self.recipe.train.schedule, step, self.total_steps)

    def ranges(self, first_step: int, last_step: int) -> Iterator[tuple[int, int]]:
        """Yield first sample and number of samples of each step."""
        for step in range(first_step, last_step + 1):
            yield self.batch.first_sample(step), self.batch.samples(step)


@dataclass(frozen=True)
class Step:
    """What one optimizer step was."""

    step: int
    loss: float
    """Mean over the step's predictions on all ranks, in nats."""
    gradient_norm: float
    """Before clipping."""
    rate: float
    samples: int


@dataclass
class Stop:
    """A wish to stop after the present step, from a signal."""

    wanted: bool = False
    signals: tuple[signal.Signals, ...] = field(default=(signal.SIGTERM, signal.SIGINT))

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Take SIGTERM and Ctrl-C as a wish to stop; a second one acts at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.wanted:
                raise KeyboardInterrupt
            self.wanted = True

        before = {number: signal.signal(number, note) for number in self.signals}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(
    state: TrainingState,
    plan: Plan,
    objective: Objective,
    batches: Batches,
    *,
    until: int,
    after_step: Callable[[Step], bool],
) -> None:
    """Take optimizer steps until ``until``, or until ``after_step`` returns True.

    Raises:
        NotFiniteError: a loss or gradient was; the state is that of the step before.
    """
    compute = Compute(objective, state, plan.recipe)
    stepping = ahead(batches, plan.ranges(state.step + 1, until))
    while state.step < until:
        micro_batches = next(stepping)
        step = state.step + 1
        count = plan.batch.samples(step)
        loss = compute.gradients(state, micro_batches)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), plan.recipe.train.clip_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            state.model.zero_grad(set_to_none=True)
            first = plan.batch.first_sample(step)
            raise NotFiniteError(
                f"step {step}: loss {float(loss)}, gradient norm {float(norm)}; its documents: "
                + "; ".join(batches.describe(first, count)[:8])
            )
        state.optimizers.set_rate(plan.rate(step))
        state.update()
        if after_step(Step(step, float(loss), float(norm), plan.rate(step), count)):
            return


class Compute:
    """Forward and backward passes of one step, compiled where the recipe asks for it."""

    def __init__(self, objective: Objective, state: TrainingState, recipe: RunRecipe):
        self.objective = objective
        self.passes, model = precision.passes(state, recipe.train.precision)
        if recipe.train.compile:
            model.model.compile()

    def gradients(self, state: TrainingState, micro_batches: list[Batch]) -> torch.Tensor:
        """Leave the gradient of the step's mean loss in the weights and return that loss.

        FSDP averages gradients over ranks, so a rank's share is scaled up by their number.
        """
        counted = sum(int((batch["labels"] != IGNORED).sum()) for batch in micro_batches)
        predictions = max(1, int(state.world.total(torch.tensor(counted, device=state.world.device))))
        total = torch.zeros((), device=state.world.device)
        self.passes.begin()
        for batch in micro_batches:
            losses = self.passes.forward(self.objective, batch)
            (losses * (state.world.size / predictions)).backward()
            self.passes.collect()
            total += losses.detach().float()
        return state.world.total(total) / predictions
