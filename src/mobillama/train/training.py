"""``train``: begin or resume a run from its recipe, and keep its records."""

import json
import time
import tomllib
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
import torch
import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from mobillama.core import atomic, records
from mobillama.core.config import Loaded, leaves
from mobillama.core.environment import environment
from mobillama.core.errors import UserError
from mobillama.core.progress import Advance, progress
from mobillama.data import Corpus, Samples

from . import heldout, host_memory, loop, parallel, sizing, speaking
from . import state as states
from .batches import TokenBatches
from .checkpoints import Store
from .loop import NotFiniteError, Plan, Step
from .metrics import Meter, Recorder
from .objectives import NextToken
from .precision import Precision
from .recipe import Recipe
from .schedule import BatchPlan
from .state import TrainingState

PLAN = "plan.json"
HARMLESS = (
    "run_dir",
    "train.max_minutes",
    "train.log_every",
    "checkpoint.",
    "evaluate.",
    "sample.",
    "corpus.",
)


@dataclass
class Session:
    """One process's part in a run: what it trains, with what, and what it writes down."""

    loaded: Loaded[Recipe]
    corpus: Corpus
    samples: Samples
    state: TrainingState
    store: Store
    recorder: Recorder
    ledger: records.Ledger
    stop: loop.Stop = field(default_factory=loop.Stop)

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def world(self) -> parallel.World:
        return self.state.world

    def note(self, event: str, **facts: Any) -> None:
        """Write a line into the ledger, from the leading rank."""
        if self.world.leads:
            self.recorder.sync()
            self.ledger.append(event, step=self.state.step, **facts)


def train(loaded: Loaded[Recipe]) -> Path:
    """Train as the recipe says, from the beginning or from the last state, and return the run directory.

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
            session = open_session(loaded, world)
            plan = begin(session)
            with session.stop.listening():
                follow(session, plan)
    finally:
        if world.size > 1:
            dist.destroy_process_group()
    return recipe.run_dir


def open_session(loaded: Loaded[Recipe], world: parallel.World) -> Session:
    """Return everything a run works with, before its first step."""
    recipe = loaded.recipe
    if not (recipe.corpus.directory / records.MANIFEST).exists():
        raise UserError(
            f"{recipe.corpus.directory}: no corpus here yet; run mobillama prepare with this recipe first"
        )
    if world.leads:
        records.require_intact(recipe.corpus.directory, "corpus")
    corpus = Corpus(recipe.corpus.directory)
    if recipe.model.max_position_embeddings < recipe.data.sequence_length:
        raise UserError(
            f"data.sequence_length = {recipe.data.sequence_length} is over model.max_position_embeddings = "
            f"{recipe.model.max_position_embeddings}; raise that or lower this"
        )
    return Session(
        loaded,
        corpus,
        Samples(corpus, recipe.data, recipe.seed),
        states.build(recipe, corpus.vocab_size, corpus.end_of_text_id, world),
        Store(recipe.run_dir),
        Recorder(recipe.run_dir, world.leads),
        records.Ledger(recipe.run_dir / records.LEDGER),
    )


def batches_of(session: Session) -> TokenBatches:
    """Return this rank's micro-batches."""
    return TokenBatches(session.samples, session.recipe.train.micro_batch, session.world)


def begin(session: Session) -> Plan:
    """Write a new run's records, or check a run's against the recipe and restore its last state."""
    run, recipe = session.recipe.run_dir, session.recipe
    session.world.barrier()
    if (run / PLAN).exists():
        if session.world.leads:
            session.ledger.require_intact()
        refuse_other_recipe(run, recipe)
        facts = json.loads((run / PLAN).read_text(encoding="utf-8"))
        if facts["corpus"] != session.corpus.identity:
            raise UserError(f"{recipe.corpus.directory} is not the corpus that {run} began with; restore it")
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
        made_from = {"corpus": session.corpus.identity}
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


def plan_of(recipe: Recipe, total_steps: int) -> Plan:
    """Return the plan of a run whose length is known."""
    batch = recipe.train.batch_tokens // recipe.data.sequence_length
    return Plan(recipe, total_steps, BatchPlan(batch, recipe.train.schedule.batch_ramp_steps))


def decide(session: Session) -> dict[str, Any]:
    """Return what is fixed once for the whole run: its steps, its threads, its corpus."""
    section = session.recipe.train
    provisional = plan_of(session.recipe, 1)
    limits = [section.max_steps or float("inf")]
    if section.max_tokens:
        limits.append(provisional.batch.steps_for(section.max_tokens // session.recipe.data.sequence_length))
    step_s = None
    if section.max_minutes:
        objective = NextToken(section.z_loss)
        step_s = sizing.seconds_per_step(session.state, provisional, objective, batches_of(session))
        time_s = sizing.SAFETY * 60 * section.max_minutes
        left_s = max(time_s / 2, time_s - measuring_s(session))  # measuring must not starve training
        affordable = max(1.0, left_s / step_s) * provisional.batch.batch
        limits.append(provisional.batch.steps_for(int(affordable)))
    return {
        "total_steps": max(1, int(min(limits))),
        "seconds_per_step": step_s,
        "threads": torch.get_num_threads(),
        "corpus": session.corpus.identity,
    }


def measuring_s(session: Session) -> float:
    """Return the seconds that held-out measurements at checkpoints and at the end will take."""
    section, corpus = session.recipe.evaluate, session.corpus
    text = heldout.HeldoutText(corpus, session.recipe.data.sequence_length, section.batch)
    precision = Precision(session.recipe.train.precision, session.world.device)
    started_at = time.monotonic()
    results = heldout.measure(session.state.model, text, precision, most_bytes=section.bytes)
    once_s = session.world.mean(time.monotonic() - started_at)
    measured = sum(result["tokens"] for result in results.values())
    whole = sum(len(corpus.tokens(subset, "heldout")) for subset in corpus.subsets)
    return once_s * session.recipe.checkpoint.count + once_s * whole / max(1, measured)


def write_beginning(session: Session, facts: dict[str, Any]) -> None:
    """Write the recipe with its origins, the environment and the plan of a new run."""
    run = session.recipe.run_dir
    resolved = session.recipe.model_dump(mode="json", exclude_none=True)
    atomic.write_text(run / "run.toml", tomli_w.dumps(resolved))
    atomic.write_text(run / "origins.json", json.dumps(session.loaded.origins, indent=1) + "\n")
    atomic.write_text(run / "environment.json", json.dumps(environment(), indent=1) + "\n")
    atomic.write_text(run / PLAN, json.dumps(facts, indent=1) + "\n")


def refuse_other_recipe(run: Path, recipe: Recipe) -> None:
    """Stop if the run began with other values than the recipe now has, but for harmless ones."""
    began = tomllib.loads((run / "run.toml").read_text(encoding="utf-8"))
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
    length = session.recipe.data.sequence_length
    tokens = plan.batch.first_sample(plan.total_steps + 1) * length
    title = f"train {session.recipe.name}"
    with progress(title, tokens, "tokens") if session.world.leads else nullcontext(ignore) as advance:
        between = Between(session, plan, advance)
        objective = NextToken(session.recipe.train.z_loss)
        try:
            loop.run(
                session.state,
                plan,
                objective,
                batches_of(session),
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
        recipe, world = session.recipe, session.world
        config = session.state.model.config
        self.meter = Meter(config, recipe.data.sequence_length, world.device, world.size)
        self.text = heldout.HeldoutText(session.corpus, recipe.data.sequence_length, recipe.evaluate.batch)
        self.last_checkpoint_at = time.monotonic()

    def __call__(self, step: Step) -> bool:
        """Record a step; return whether the run should stop here."""
        recipe, state = self.session.recipe, self.session.state
        tokens_seen = self.plan.batch.first_sample(step.step + 1) * recipe.data.sequence_length
        self.meter.tokens += step.samples * recipe.data.sequence_length
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
            self.measure(None if last else recipe.evaluate.bytes)
            self.speak()
            self.checkpoint()
        elif stopping:
            self.checkpoint()
        elif recipe.evaluate.every_steps and step.step % recipe.evaluate.every_steps == 0:
            self.measure(recipe.evaluate.bytes)
        return stopping and state.step < self.plan.total_steps

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after ``step``."""
        section, length = self.session.recipe.checkpoint, self.session.recipe.data.sequence_length
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
            "tokens_seen": samples_seen * session.recipe.data.sequence_length,
            "total_steps": self.plan.total_steps,
            "world_size": session.world.size,
        }
        identity = session.store.save(state, session.corpus, facts)
        session.note("checkpoint", checkpoint=identity, samples_seen=samples_seen)
        if session.world.leads:
            session.store.prune(session.recipe.checkpoint)
        session.world.barrier()
        self.last_checkpoint_at = time.monotonic()

    def measure(self, most_bytes: int | None) -> None:
        """Measure held-out text and record bits per byte by subset and over the mixture."""
        session = self.session
        precision = Precision(session.recipe.train.precision, session.world.device)
        results = heldout.measure(session.state.model, self.text, precision, most_bytes=most_bytes)
        if not results:
            return
        shares = {share.name: share.quota for share in session.samples.order.shares}
        total = heldout.weighted(results, shares)
        session.recorder.write(
            "evaluations.jsonl",
            session.state.step,
            bits_per_byte=total,
            whole=most_bytes is None,
            subsets=results,
        )
        session.note("evaluation", bits_per_byte=total)

    def speak(self) -> None:
        """Record how the model goes on from the recipe's prompts."""
        section = self.session.recipe.sample
        for prompt in section.prompts:
            text = speaking.complete(self.session.state.model, self.session.corpus, prompt, section)
            self.session.recorder.write("samples.jsonl", self.session.state.step, prompt=prompt, text=text)
