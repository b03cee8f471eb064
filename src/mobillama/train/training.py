"""``train``: begin or resume a run from its recipe, and keep its records."""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
import torch
import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from mobillama.core import atomic, records
from mobillama.core.config import Loaded, leaves, load
from mobillama.core.environment import environment
from mobillama.core.errors import UserError
from mobillama.core.progress import Advance, progress

from . import ancestry, host_memory, loop, parallel, sizing
from . import state as states
from .checkpoints import Store
from .loop import NotFiniteError, Plan, Step
from .metrics import Meter, Recorder
from .objectives import Objective
from .precision import Precision
from .recipe import RunRecipe
from .schedule import BatchPlan
from .state import TrainingState
from .work import TextWork, Work

PLAN = "plan.json"
HARMLESS = (
    "run_dir",
    "train.max_minutes",
    "train.log_every",
    "checkpoint.",
    "evaluate.",
    "sample.",
    "corpus.",
    "images.",
)


@dataclass
class Session:
    """One process's part in a run: what it trains, with what, and what it writes down."""

    loaded: Loaded[Any]
    work: Work
    state: TrainingState
    objective: Objective
    store: Store
    recorder: Recorder
    ledger: records.Ledger
    stop: loop.Stop = field(default_factory=loop.Stop)

    @property
    def recipe(self) -> RunRecipe:
        return self.loaded.recipe

    @property
    def world(self) -> parallel.World:
        return self.state.world

    def note(self, event: str, **facts: Any) -> None:
        """Write a line into the ledger, from the leading rank."""
        if self.world.leads:
            self.recorder.sync()
            self.ledger.append(event, step=self.state.step, **facts)


def train(loaded: Loaded[Any], open_work: Callable[..., Work] = TextWork) -> Path:
    """Train as the recipe says, from the beginning or from the last state, and return the run directory.

    Arguments:
        loaded: a recipe, `RunRecipe` or a kind of it.
        open_work: what makes of it what is learnt; called with the recipe, and ``check``, whether to hash
            the data.

    Raises:
        UserError: no corpus, a recipe other than the one the run began with, another process in the run
            directory, a broken checkpoint, or a loss that is not finite.
    """
    recipe = loaded.recipe
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    world = parallel.start()
    if world.device.type == "cpu":
        host_memory.keep_freed_memory()
    transformers_logging.disable_progress_bar()  # A bar for each checkpoint it writes would tear ours.
    try:
        with atomic.exclusive(recipe.run_dir) if world.leads else nullcontext():
            session = open_session(loaded, open_work, world)
            plan = begin(session)
            with session.stop.listening():
                follow(session, plan)
    finally:
        if world.size > 1:
            dist.destroy_process_group()
    return recipe.run_dir


def open_session(loaded: Loaded[Any], open_work: Callable[..., Work], world: parallel.World) -> Session:
    """Return everything a run works with, before its first step."""
    recipe = loaded.recipe
    work = open_work(recipe, check=world.leads)
    state = states.build(recipe, work.model, work.rates, world)
    return Session(
        loaded,
        work,
        state,
        work.objective(state.model),
        Store(recipe.run_dir),
        Recorder(recipe.run_dir, world.leads),
        records.Ledger(recipe.run_dir / records.LEDGER),
    )


def begin(session: Session) -> Plan:
    """Write a new run's records, or check a run's against the recipe and restore its last state."""
    run, recipe = session.recipe.run_dir, session.recipe
    session.world.barrier()
    if (run / PLAN).exists():
        if session.world.leads:
            session.ledger.require_intact()
        refuse_other_recipe(run, recipe)
        facts = json.loads((run / PLAN).read_text(encoding="utf-8"))
        if facts["corpus"] != session.work.identity:
            raise UserError(f"{run} began with other data than the recipe names now; restore it")
        ancestry.refuse_others(run, facts, session.work.ancestors)
        if facts["threads"] != torch.get_num_threads():
            torch.set_num_threads(facts["threads"])
    else:
        facts = decide(session)
        if session.world.leads:
            write_beginning(session, facts)
    session.world.barrier()
    plan = plan_of(recipe, facts["total_steps"])
    if resumable := session.store.resumable():
        session.store.restore(session.state, resumable[-1])
        if session.state.step < plan.total_steps:
            rewind(session, "resume", world_size=session.world.size, environment=environment())
        warn_of_other_ranks(session)
        own_up(session, plan)
        if session.world.leads:
            session.store.prune(recipe.checkpoint)
    else:
        made_from = {"corpus": session.work.identity, **session.work.ancestors}
        rewind(session, "start", world_size=session.world.size, environment=environment(), **made_from)
    return plan


def rewind(session: Session, event: str, **facts: Any) -> None:
    """Note that the run goes on from its present step, and cut from its records what came after it.

    The ledger's line comes first and vouches for the records as they will be: a kill in between leaves
    records that begin as the line says, which is no fault.
    """
    if session.world.leads:
        kept = session.recorder.until(session.state.step)
        session.note(event, keeping=kept, **facts)
        session.recorder.cut(kept)


def own_up(session: Session, plan: Plan) -> None:
    """Tell the ledger of a restored checkpoint if its writer was killed before it could."""
    step = session.state.step
    told = {entry["step"] for entry in session.ledger.entries() if entry["event"] == "checkpoint"}
    if session.world.leads and step not in told:
        identity = records.manifest_hash(session.store.checkpoint(step))
        session.note("checkpoint", checkpoint=identity, samples_seen=plan.batch.first_sample(step + 1))


def warn_of_other_ranks(session: Session) -> None:
    """Note in the ledger that bits will differ where the run goes on with another number of ranks."""
    checkpoint = session.store.checkpoint(session.state.step)
    before, now = records.read_manifest(checkpoint)["world_size"], session.world.size
    if before != now:
        session.note("warning", reason=f"{before} ranks before, {now} now: equal in value, not in bits")


def plan_of(recipe: RunRecipe, total_steps: int) -> Plan:
    """Return the plan of a run whose length is known."""
    steps = BatchPlan(recipe.samples_per_step, recipe.train.schedule.batch_ramp_steps)
    return Plan(recipe, total_steps, steps)


def decide(session: Session) -> dict[str, Any]:
    """Return what is fixed once for the whole run: its steps, its threads, its corpus."""
    section = session.recipe.train
    provisional = plan_of(session.recipe, 1)
    limits = [section.max_steps or float("inf")]
    if section.max_tokens:
        limits.append(provisional.batch.steps_for(section.max_tokens // session.work.tokens_per_sample))
    if section.max_epochs:
        samples = math.ceil(section.max_epochs * session.work.samples_per_epoch)
        limits.append(provisional.batch.steps_for(samples))
    step_s = None
    if section.max_minutes:
        batches = session.work.batches(session.world)
        step_s = sizing.seconds_per_step(session.state, provisional, session.objective, batches)
        time_s = sizing.SAFETY * 60 * section.max_minutes
        left_s = max(time_s / 2, time_s - measuring_s(session))  # measuring must not starve training
        affordable = max(1.0, left_s / step_s) * provisional.batch.batch
        limits.append(provisional.batch.steps_for(int(affordable)))
    return {
        "total_steps": max(1, int(min(limits))),
        "seconds_per_step": step_s,
        "threads": torch.get_num_threads(),
        "corpus": session.work.identity,
        **session.work.ancestors,
    }


def measuring_s(session: Session) -> float:
    """Return the seconds that held-out measurements at checkpoints and at the end will take."""
    precision = Precision(session.recipe.train.precision, session.world.device)
    started_at = time.monotonic()
    record = session.work.measure(session.state.model, precision, whole=False)
    once_s = session.world.mean(time.monotonic() - started_at)
    return once_s * (session.recipe.checkpoint.count + session.work.left_out(record))


def write_beginning(session: Session, facts: dict[str, Any]) -> None:
    """Write the recipe with its origins, the environment and the plan of a new run."""
    run = session.recipe.run_dir
    resolved = session.recipe.model_dump(mode="json", exclude_none=True)
    atomic.write_text(run / "run.toml", tomli_w.dumps(resolved))
    atomic.write_text(run / "origins.json", json.dumps(session.loaded.origins, indent=1) + "\n")
    atomic.write_text(run / "environment.json", json.dumps(environment(), indent=1) + "\n")
    atomic.write_text(run / PLAN, json.dumps(facts, indent=1) + "\n")


def refuse_other_recipe(run: Path, recipe: RunRecipe) -> None:
    """Stop if the run began with other values than the recipe now has, but for harmless ones."""
    # As a recipe, so that a run from before a key existed has its default.
    began = load(run / "run.toml", type(recipe)).recipe.model_dump(mode="json", exclude_none=True)
    now = recipe.model_dump(mode="json", exclude_none=True)
    for dotted in sorted({*leaves(began), *leaves(now)}):
        if not dotted.startswith(HARMLESS) and (old := at(began, dotted)) != (new := at(now, dotted)):
            raise UserError(
                f"{run} began with {dotted} = {old!r}, the recipe says {new!r}; give it another run_dir"
            )


def at(values: dict[str, Any], dotted: str) -> Any:
    """Return the value at a dotted path, or None."""
    inner: Any = values
    for part in dotted.split("."):
        inner = inner.get(part) if isinstance(inner, dict) else None
    return inner


def follow(session: Session, plan: Plan) -> None:
    """Run the loop to the plan's end, with a checkpoint, measurements and records where they are due."""
    if session.state.step >= plan.total_steps:
        if session.world.leads and session.ledger.entries()[-1]["event"] == "checkpoint":
            session.note("stop", reason="finished")
        return
    length = session.work.tokens_per_sample
    tokens = plan.batch.first_sample(plan.total_steps + 1) * length
    title = f"train {session.recipe.name}"
    with progress(title, tokens, "tokens") if session.world.leads else nullcontext(ignore) as advance:
        between = Between(session, plan, advance)
        try:
            loop.run(
                session.state,
                plan,
                session.objective,
                session.work.batches(session.world),
                until=plan.total_steps,
                after_step=between,
            )
        except NotFiniteError as fault:
            between.checkpoint()
            session.note("stop", reason=str(fault))
            raise
    done = session.state.step >= plan.total_steps
    session.note("stop", reason="finished" if done else "asked to stop")


def ignore(done: float, note: str = "") -> None:
    """Show nothing, on ranks that do not lead."""


class Between:
    """What happens after each step: metrics, and where they are due, a checkpoint and measurements."""

    def __init__(self, session: Session, plan: Plan, advance: Advance):
        self.session, self.plan, self.advance = session, plan, advance
        world = session.world
        config: Any = session.state.model.config.get_text_config()
        self.length = session.work.tokens_per_sample
        self.meter = Meter(config, self.length, world.device, world.size)
        self.last_checkpoint_at = time.monotonic()

    def __call__(self, step: Step) -> bool:
        """Record a step; return whether the run should stop here."""
        recipe, state = self.session.recipe, self.session.state
        tokens_seen = self.plan.batch.first_sample(step.step + 1) * self.length
        self.meter.tokens += step.samples * self.length
        last = step.step == self.plan.total_steps
        if step.step % recipe.train.log_every == 0 or last:
            reading = self.meter.read()
            rate = recipe.train.optimizer.lr * step.rate
            self.session.recorder.write(
                "metrics.jsonl", step.step, tokens=tokens_seen, loss=step.loss, learning_rate=rate,
                gradient_norm=step.gradient_norm, **reading,
            )  # fmt: skip
            self.advance(tokens_seen, f"step {step.step}, loss {step.loss:.3f}")
        stopping = self.session.world.agree(self.session.stop.wanted)
        if self.due(step.step) or last:
            # Measured first: a run killed in between repeats both, so no checkpoint lacks its measurement.
            measured_whole = self.measure(whole=False)  # at the last step too: the curve stays on one text
            if last and not measured_whole:
                self.measure(whole=True)
            self.speak()
            self.checkpoint()
        elif stopping:
            self.checkpoint()
        elif recipe.evaluate.every_steps and step.step % recipe.evaluate.every_steps == 0:
            self.measure(whole=False)
        return stopping and state.step < self.plan.total_steps

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after ``step``."""
        section, length = self.session.recipe.checkpoint, self.length
        if (
            section.count
            and step * section.count // self.plan.total_steps
            > (step - 1) * section.count // self.plan.total_steps
        ):
            return True
        if section.every_steps and step % section.every_steps == 0:
            return True
        if section.every_tokens:
            before, after = (self.plan.batch.first_sample(at_step) * length for at_step in (step, step + 1))
            if after // section.every_tokens > before // section.every_tokens:
                return True
        if section.every_minutes:
            waited_s = time.monotonic() - self.last_checkpoint_at
            return self.session.world.agree(waited_s >= 60 * section.every_minutes)
        return False

    def checkpoint(self) -> None:
        """Save the present step, note it in the ledger and prune old states."""
        session, state = self.session, self.session.state
        if state.step in session.store.resumable():
            return
        samples_seen = self.plan.batch.first_sample(state.step + 1)
        facts = {
            "run": session.recipe.name,
            "samples_seen": samples_seen,
            "tokens_seen": samples_seen * self.length,
            "total_steps": self.plan.total_steps,
            "world_size": session.world.size,
            **session.work.ancestors,
        }
        identity = session.store.save(state, session.work, facts)
        session.note("checkpoint", checkpoint=identity, samples_seen=samples_seen)
        if session.world.leads:
            session.store.prune(session.recipe.checkpoint)
        session.world.barrier()
        self.last_checkpoint_at = time.monotonic()

    def measure(self, *, whole: bool) -> bool:
        """Measure held-out data and record it; return whether that was all there is to measure."""
        session = self.session
        precision = Precision(session.recipe.train.precision, session.world.device)
        if record := session.work.measure(session.state.model, precision, whole=whole):
            session.recorder.write("evaluations.jsonl", session.state.step, **record)
            figures = {key: value for key, value in record.items() if isinstance(value, float)}
            session.note("evaluation", **figures)
        return record.get("whole", True)

    def speak(self) -> None:
        """Record what the model makes of the recipe's prompts."""
        for prompt, text in self.session.work.speak(self.session.state.model):
            self.session.recorder.write("samples.jsonl", self.session.state.step, prompt=prompt, text=text)
