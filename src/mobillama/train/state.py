"""All that a run is at a step: weights, optimizer moments, averaged weights, random numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobillama.core.errors import UserError
from mobillama.model import MobiLlamaForCausalLM, lora
from mobillama.model.loading import load_language_model

from . import optimizers as optimizer_module
from . import parallel
from .objectives import Batch, Objective
from .optimizers import Optimizers
from .recipe import RunRecipe

Tensors = dict[str, Tensor]


@dataclass
class TrainingState:
    """What changes while training. ``step`` optimizer steps are done."""

    model: MobiLlamaForCausalLM
    optimizers: Optimizers
    world: parallel.World
    average_decay: float = 0.0
    step: int = 0
    average: Tensors = field(default_factory=dict)

    def names(self) -> dict[Tensor, str]:
        """Return the name of each weight."""
        return {weight: name for name, weight in self.model.named_parameters()}

    def apply(self, objective: Objective, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return an objective's sum of losses and number of predictions on a micro-batch."""
        if self.world.size == 1:
            return objective(self.model, batch)
        return self.model.apply_objective(objective, batch)  # pyright: ignore[reportCallIssue]

    def update(self) -> None:
        """Apply the gradients that have gathered: one optimizer step."""
        self.optimizers.step()
        self.step += 1
        for name, weight in self.model.named_parameters() if self.average_decay else ():
            self.average[name].lerp_(weight.detach(), 1 - self.average_decay)

    def weights(self) -> Tensors:
        """Return every weight whole on the CPU, what adapters add included. All ranks must call it."""
        parallel.reshard(self.model)
        return lora.merged({name: parallel.gather(weight) for name, weight in self.model.named_parameters()})

    def moments(self) -> Tensors:
        """Return optimizer state, averaged weights, adapters and random state, whole on the CPU, by name."""
        parallel.reshard(self.model)
        names = self.names()
        tensors: Tensors = {f"average.{name}": parallel.gather(value) for name, value in self.average.items()}
        for name, weight in self.model.named_parameters():
            if lora.is_adapter(name):
                tensors[f"adapter.{name}"] = parallel.gather(weight)
        for number, member in enumerate(self.optimizers.members):
            for weight, values in member.state.items():
                for key, value in values.items():
                    tensors[f"optimizer.{number}.{key}.{names[weight]}"] = parallel.gather(
                        torch.as_tensor(value)
                    )
        tensors["random.cpu"] = torch.get_rng_state()
        if self.world.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        return tensors

    def restore(self, step: int, weights: Tensors, moments: Tensors) -> None:
        """Become what ``weights`` and ``moments`` hold, on any number of ranks."""
        parameters = dict(self.model.named_parameters())
        given = lora.unmerged(weights, parameters, moments)
        with torch.no_grad():
            for name, value in given.items():
                parameters[name].copy_(parallel.place(value, parameters[name]))
        self.average = {}
        for key, value in moments.items():
            kind, _, rest = key.partition(".")
            if kind == "average":
                self.average[rest] = parallel.place(value, parameters[rest])
            elif kind == "optimizer":
                number, field_name, name = rest.split(".", 2)
                weight = parameters[name]
                placed = parallel.place(value, weight) if value.ndim else value.to(weight.device)
                self.optimizers.members[int(number)].state[weight][field_name] = placed
        torch.set_rng_state(moments["random.cpu"])
        if "random.cuda" in moments and self.world.device.type == "cuda":
            torch.cuda.set_rng_state(moments["random.cuda"])
        self.step = step


def build(
    recipe: RunRecipe, make: Callable[[], Any], rates: Mapping[str, float], world: parallel.World
) -> TrainingState:
    """Return the state before the first step: the same weights from the same seed on any number of ranks.

    Arguments:
        make: gives the model (`Work.model`).
        rates: learning rates of parts that have their own, by the beginning of their weights' names.

    Raises:
        UserError: the model that the recipe starts from cannot be read.
    """
    torch.manual_seed(recipe.seed)
    model = make().train()
    model.to(world.device)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if recipe.train.checkpoint_activations:
        model.gradient_checkpointing_enable()
    parallel.shard(model, world, compute_dtype(recipe))
    state = TrainingState(
        model, optimizer_module.build(model, recipe.train.optimizer, rates), world, recipe.train.average_decay
    )
    if state.average_decay:
        state.average = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return state


def start(folder: Path, vocab_size: int) -> MobiLlamaForCausalLM:
    """Return the model of a folder in fp32, with a row for every token.

    Raises:
        UserError: it cannot be read, or is not for this vocabulary.
    """
    model = load_language_model(folder, device="cpu", dtype=torch.float32)
    assert isinstance(model, MobiLlamaForCausalLM)  # The recipe has looked at its configuration.
    if model.config.vocab_size < vocab_size:
        raise UserError(
            f"{folder}: model.embed_tokens.weight has {model.config.vocab_size} rows, "
            f"the corpus {vocab_size} tokens; prepare it with the model's tokenizer"
        )
    return model


def compute_dtype(recipe: RunRecipe) -> torch.dtype:
    """Return the number format of forward and backward passes."""
    return torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
