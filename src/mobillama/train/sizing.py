"""How many steps fit into a time: decided once, before a run's first step, so that resuming repeats it."""

import time
from collections.abc import Callable
from statistics import quantiles

import torch

from .batches import Batches
from .loop import Compute, Plan
from .objectives import Objective
from .state import TrainingState

SAFETY = 0.97
"""Share of the time to fill; the rest is for checkpoints and for a machine that slows down."""
ROUNDS = 5


def seconds_per_step(state: TrainingState, plan: Plan, objective: Objective, batches: Batches) -> float:
    """Return how long one whole optimizer step takes now; ``state``, which must be new, stays as it is.

    The first round warms up and is not counted. Of the others the lower quartile counts: a moment's other
    work on the machine only ever adds time.
    """
    compute = Compute(objective, state, plan.recipe)
    random = torch.get_rng_state()
    micro_batches = batches.micro_batches(0, plan.batch.batch)
    state.optimizers.set_rate(0.0)  # updates of nothing, which take as long
    passes_s, updates_s = [], []
    for _ in range(1 + ROUNDS):
        passes_s.append(seconds(lambda: compute.gradients(state, micro_batches[:1]), state.world.device))
        updates_s.append(seconds(state.optimizers.step, state.world.device))
    for member in state.optimizers.members:
        member.state.clear()
    torch.set_rng_state(random)
    mine = quantiles(passes_s[1:], n=4)[0] * len(micro_batches) + quantiles(updates_s[1:], n=4)[0]
    return state.world.mean(mine)  # All ranks must take the same number of steps.


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long ``work`` takes, its kernels on a GPU included."""
    started_at = time.monotonic()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - started_at
