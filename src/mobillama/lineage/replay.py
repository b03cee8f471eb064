"""Repeat steps of a run and compare with what it kept, bit for bit.

The weights and optimizer state of one checkpoint (or the seed, for step 0), the recipe and the corpus
determine every later step. On the machine and versions of the run a replay must be equal; elsewhere it
says where it parts, and what differs that may explain it.
"""

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mobillama.core import atomic
from mobillama.core.config import leaves
from mobillama.core.environment import environment
from mobillama.core.errors import UserError
from mobillama.core.progress import progress
from mobillama.core.records import LEDGER, Ledger, read_jsonl, require_intact
from mobillama.report.run import latest_by_step
from mobillama.train import ancestry, host_memory, loop, parallel
from mobillama.train import state as states
from mobillama.train.checkpoints import STATE_FILE, Store, load_file, load_weights
from mobillama.train.loop import Plan, Step
from mobillama.train.state import Tensors, TrainingState
from mobillama.train.training import at, plan_of
from mobillama.train.work import Work

from . import kinds
from .seen import RunHistory

# What a step's numbers may depend on beside recipe and corpus; `command` and such do not matter.
RELEVANT = ("python", "packages", "platform", "processor", "cpu_count", "source")
COMPARED_METRICS = ("loss", "gradient_norm")


@dataclass(frozen=True)
class Parting:
    """The first thing that differs: the step after which, and what."""

    step: int
    what: str


@dataclass
class Outcome:
    """What a replay found: equal where ``parting`` is None."""

    run: str
    from_step: int
    to_step: int
    losses: int = 0
    """Recorded losses that were repeated."""
    tensors: int = 0
    """Kept tensors that were repeated."""
    parting: Parting | None = None
    differences: list[str] = field(default_factory=list)
    """How this process differs from the one that trained."""

    @property
    def equal(self) -> bool:
        """Whether everything that could be compared was equal."""
        return self.parting is None

    def facts(self) -> dict[str, Any]:
        """Return the outcome as plain values, as they go into the ledger."""
        return {**asdict(self), "equal": self.equal}

    def sentence(self) -> str:
        """Return the outcome in words."""
        steps = f"{self.run}: steps {self.from_step + 1:,} to {self.to_step:,}"
        if self.parting is None:
            return f"{steps} repeated, equal bit for bit: {self.losses:,} losses, {self.tensors:,} tensors"
        reasons = (
            "; ".join(self.differences)
            or "nothing known; recipe, corpus or a kept file may have been changed"
        )
        return (
            f"{steps} part at step {self.parting.step:,}: {self.parting.what}. What differs here: {reasons}"
        )


def replay(run: Path, from_step: int, to_step: int) -> Outcome:
    """Repeat ``from_step + 1 .. to_step``, compare with all that was kept of them, and note it in the ledger.

    Runs trained by several processes are repeated by as many, each calling this (``torchrun``).

    Arguments:
        from_step: a step whose state was kept, or 0 for the beginning.
        to_step: a later step with a checkpoint.

    Raises:
        UserError: a checkpoint or its state is not there or damaged, or another process works on the run.
    """
    return repeat(run, lambda world: [(from_step, to_step)])[0]


def spot_check(run: Path, count: int) -> list[Outcome]:
    """Repeat ``count`` of the shortest intervals, drawn by chance, or all where there are fewer.

    Raises:
        UserError: as ``replay``.
    """
    every = intervals(run)

    def chosen(world: parallel.World) -> list[tuple[int, int]]:
        # Nobody can know them beforehand, and all ranks draw the same: the leading one tells its seed.
        seed = random.SystemRandom().getrandbits(62) if world.leads else 0
        seed = int(world.total(torch.tensor(seed, device=world.device)))
        return sorted(random.Random(seed).sample(every, min(count, len(every))))

    return repeat(run, chosen)


def intervals(run: Path) -> list[tuple[int, int]]:
    """Return each shortest interval that can be repeated: from a kept state to the next checkpoint.

    Raises:
        UserError: the run has no checkpoint yet.
    """
    store = Store(run)
    if not store.steps():
        raise UserError(f"{run}: no checkpoint here yet; train first")
    kept = {0, *store.resumable()}
    return [(start, stop) for start, stop in pairwise([0, *store.steps()]) if start in kept]


def repeat(run: Path, choose: Callable[[parallel.World], list[tuple[int, int]]]) -> list[Outcome]:
    """Repeat the intervals that ``choose`` gives, each noted in the ledger."""
    history = kinds.history_of(run)
    facts = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    work = kinds.work_of(history.recipe)(history.recipe)
    ancestry.refuse_others(run, facts, work.ancestors)
    torch.set_num_threads(facts["threads"])
    world = parallel.start()
    if world.device.type == "cpu":
        host_memory.keep_freed_memory()
    try:
        with atomic.exclusive(run) if world.leads else nullcontext():
            outcomes = []
            for from_step, to_step in choose(world):
                plan = plan_of(history.recipe, facts["total_steps"])
                outcome = Replay(history, work, plan, world, (from_step, to_step)).outcome()
                if world.leads:
                    Ledger(run / LEDGER).append("replay", **outcome.facts(), environment=environment())
                outcomes.append(outcome)
            return outcomes
    finally:
        if world.size > 1:
            dist.destroy_process_group()


class Replay:
    """One interval being repeated on this rank."""

    def __init__(
        self, history: RunHistory, work: Work, plan: Plan, world: parallel.World, interval: tuple[int, int]
    ):
        self.history, self.work, self.plan, self.world = history, work, plan, world
        from_step, to_step = interval
        self.store = Store(history.run)
        if to_step not in self.store.steps() or to_step <= from_step:
            later = ", ".join(str(step) for step in self.store.steps() if step > from_step) or "none"
            raise UserError(
                f"{history.run}: no checkpoint of step {to_step} after {from_step}; there are {later}"
            )
        self.result = Outcome(str(history.run), from_step, to_step)
        self.recorded = {
            entry["step"]: entry for entry in latest_by_step(read_jsonl(history.run / "metrics.jsonl"))
        }

    def outcome(self) -> Outcome:
        """Take the steps and compare after each."""
        result, work = self.result, self.work
        state = states.build(self.history.recipe, work.model, work.rates, self.world)
        if result.from_step:
            self.store.restore(state, result.from_step)
        batches = work.batches(self.world)
        total = result.to_step - result.from_step
        with progress("replay", total, "steps") if self.world.leads else nullcontext(None) as advance:

            def after(step: Step) -> bool:
                if advance is not None:
                    advance(step.step - result.from_step)
                return self.parts(state, step)

            objective = work.objective(state.model)
            loop.run(state, self.plan, objective, batches, until=result.to_step, after_step=after)
        result.differences = differences(self.history.run, result.from_step, self.world.size)
        return result

    def parts(self, state: TrainingState, step: Step) -> bool:
        """Compare a step with what was kept of it; return whether it parts. All ranks must call it."""
        result = self.result
        if what := self.differing_metric(step):
            result.parting = Parting(step.step, what)
        elif step.step in self.store.steps():
            self.compare(step.step, state.weights, self.stored_weights, "weights")
            if result.parting is None and step.step in self.store.resumable():
                self.compare(step.step, state.moments, self.stored_moments, "state")
        return result.parting is not None

    def differing_metric(self, step: Step) -> str | None:
        """Return what of a step's recorded numbers differs, None if nothing does or was recorded."""
        entry = self.recorded.get(step.step)
        if entry is None:
            return None
        repeated = asdict(step)
        for name in COMPARED_METRICS:
            if repeated[name] != entry[name]:
                return f"{name} {repeated[name]!r}, where {entry[name]!r} was recorded"
        self.result.losses += 1
        return None

    def compare(
        self, step: int, ours: Callable[[], Tensors], theirs: Callable[[int], Tensors], kind: str
    ) -> None:
        """Compare tensors with those kept; the leading rank reads, all ranks learn the outcome."""
        repeated, what = ours(), None
        if self.world.leads:
            kept = theirs(step)
            what = first_difference(repeated, kept)
            self.result.tensors += len(kept) if what is None else 0
        if self.world.agree(what is not None):
            self.result.parting = Parting(step, f"{kind}: {what}")

    def stored_weights(self, step: int) -> Tensors:
        """Return the weights of a checkpoint that is intact."""
        require_intact(self.store.checkpoint(step), "checkpoint")
        return load_weights(self.store.checkpoint(step))

    def stored_moments(self, step: int) -> Tensors:
        """Return the optimizer state kept beside a checkpoint, if it is intact."""
        require_intact(self.store.state(step), "state")
        return load_file(self.store.state(step) / STATE_FILE)


def first_difference(ours: Tensors, theirs: Tensors) -> str | None:
    """Return in words the first tensor that differs in any bit, in the model's order; None if none does."""
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in theirs or name not in ours:
            return f"{name} is only {'repeated' if name in ours else 'kept'}"
        kept, repeated = theirs[name], ours[name].to(theirs[name].dtype)
        if kept.shape != repeated.shape:
            return f"{name} has shape {list(repeated.shape)}, kept is {list(kept.shape)}"
        # As bytes: equal to the bit, also where values are not numbers or zeros have signs.
        bits = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (kept, repeated)]
        if not torch.equal(*bits):
            unequal = (bits[0] != bits[1]).view(-1, kept.element_size()).any(1)
            gap = (kept.double() - repeated.double()).abs().max().item()
            return (
                f"{name} differs in {int(unequal.sum()):,} of {kept.numel():,} values, by at most {gap:.3g}"
            )
    return None


def differences(run: Path, from_step: int, world_size: int) -> list[str]:
    """Return how this process differs from the one that trained on from ``from_step``."""
    begun = [
        entry
        for entry in Ledger(run / LEDGER).entries()
        if entry["event"] in ("start", "resume") and entry["step"] <= from_step
    ]
    if not begun:
        return ["the ledger does not tell what the run was trained with"]
    then, now = (
        {name: env.get(name) for name in RELEVANT} for env in (begun[-1]["environment"], environment())
    )
    then["world_size"], now["world_size"] = begun[-1]["world_size"], world_size
    return [
        f"{dotted} {at(then, dotted)} then, {at(now, dotted)} now"
        for dotted in sorted({*leaves(then), *leaves(now)})
        if at(then, dotted) != at(now, dotted)
    ]
