"""Checkpoints on disk: a model folder each, and beside it, for the newest, the state to resume from.

Both are written whole or not at all, and nothing in them is pickled. The state goes first: a
checkpoint that exists can be resumed from, until its state is pruned.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from mobillama.core import atomic, records
from mobillama.core.environment import source_commit
from mobillama.core.errors import UserError

from .ancestry import STARTED_FROM
from .recipe import CheckpointSection
from .state import Tensors, TrainingState

if TYPE_CHECKING:
    from .work import Work

CHECKPOINTS, STATES = "checkpoints", "states"
STATE_FILE = "state.safetensors"


def name_of(step: int) -> str:
    """Return the folder name of a step."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class Store:
    """The checkpoints of one run directory."""

    run: Path

    def steps(self, folder: str = CHECKPOINTS) -> list[int]:
        """Return the steps that have a whole checkpoint (or state), ascending."""
        found = (self.run / folder).glob("step-*")
        return sorted(
            int(path.name.removeprefix("step-")) for path in found if (path / records.MANIFEST).is_file()
        )

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a checkpoint."""
        return self.run / CHECKPOINTS / name_of(step)

    def state(self, step: int) -> Path:
        """Return the folder of a resumable state."""
        return self.run / STATES / name_of(step)

    def resumable(self) -> list[int]:
        """Return the steps that training can go on from, ascending."""
        states = set(self.steps(STATES))
        return [step for step in self.steps() if step in states]

    def save(self, state: TrainingState, work: "Work", facts: dict[str, Any]) -> str | None:
        """Write state and checkpoint of this step; return the checkpoint's identity, on the leading rank.

        ``facts`` goes into the manifest; the first checkpoint's parent is the model that the run
        ``started_from``, if it did. All ranks must call it.
        """
        weights, moments = state.weights(), state.moments()
        if not state.world.leads:
            return None
        with atomic.atomic_directory(self.state(state.step)) as partial:
            save_file(moments, partial / STATE_FILE)
            records.write_manifest(partial, "state", step=state.step)
        earlier = [step for step in self.steps() if step < state.step]
        parent = records.manifest_hash(self.checkpoint(earlier[-1])) if earlier else facts.get(STARTED_FROM)
        with atomic.atomic_directory(self.checkpoint(state.step)) as partial:
            # Under the names the model has here: transformers would give a LLaVA those of its first release.
            state.model.save_pretrained(partial, state_dict=weights, save_original_format=False)
            work.dress(partial)
            lineage = {"parent": parent, "corpus": work.identity, "source": source_commit()}
            records.write_manifest(partial, "checkpoint", step=state.step, **facts, **lineage)
        return records.manifest_hash(self.checkpoint(state.step))

    def restore(self, state: TrainingState, step: int) -> None:
        """Set ``state`` to what was saved at ``step``, after checking every byte of it.

        Raises:
            UserError: the state was pruned, or a file is not what its manifest says.
        """
        if step not in self.resumable():
            kept = ", ".join(map(str, self.resumable())) or "none"
            raise UserError(f"{self.run}: step {step} has no state to go on from; steps that have: {kept}")
        records.require_intact(self.state(step), "state")
        records.require_intact(self.checkpoint(step), "checkpoint")
        state.restore(step, load_weights(self.checkpoint(step)), load_file(self.state(step) / STATE_FILE))

    def prune(self, section: CheckpointSection) -> None:
        """Remove the states that the recipe does not keep."""
        steps = self.steps()
        kept = set(self.resumable()[-section.keep_states :])
        if section.keep_state_every:
            kept |= set(steps[:: section.keep_state_every])
        for step in set(self.steps(STATES)) - kept:
            shutil.rmtree(self.state(step))


def load_weights(checkpoint: Path) -> Tensors:
    """Return the weights of a checkpoint, of one file or of several."""
    weights: Tensors = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


def last_checkpoint(run: Path) -> Path:
    """Return the newest checkpoint of a run.

    Raises:
        UserError: there is none.
    """
    store = Store(run)
    if not store.steps():
        raise UserError(f"{run}: no checkpoint here yet; train first")
    return store.checkpoint(store.steps()[-1])
