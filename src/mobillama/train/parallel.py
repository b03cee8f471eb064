"""Many processes: FSDP2 with each shared FFN as a unit of its own, and whole tensors for checkpoints."""

import os
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from mobillama.model import MobiLlamaForCausalLM

from .objectives import Batch, Objective

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this process writes the records."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a value over all ranks."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def mean(self, value: float) -> float:
        """Return the mean of a number over all ranks: one number, where each may have its own."""
        return float(self.total(torch.tensor(value, device=self.device))) / self.size

    def agree(self, flag: bool) -> bool:
        """Return whether any rank raises the flag, so that all act on it in the same step."""
        return bool(self.total(torch.tensor(float(flag), device=self.device)))

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


def start() -> World:
    """Join the processes that torchrun started, or return a world of one."""
    cuda = torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(device=torch.device("cuda" if cuda else "cpu"))
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), device)


def language_of(model: Any) -> Any:
    """Return the layers that make language: all of a model of text, a part of one that sees."""
    return getattr(model.model, "language_model", model.model)


def shard(model: MobiLlamaForCausalLM, world: World, compute: torch.dtype) -> None:
    """Shard weights, gradients and optimizer state over the ranks; passes run in ``compute``, sums in fp32.

    The FFNs come first and are units of their own: inside a layer's unit a shared FFN would be gathered
    and freed with that layer while others still need it.
    """
    if world.size == 1:
        return
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    stack = language_of(model)
    for ffn in stack.ffns:
        # Gathered once a micro-batch, not once a layer; ``release`` ends that.
        fully_shard(ffn, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        ffn.set_reshard_after_backward(False)  # pyright: ignore[reportCallIssue]
    for unit in (*stack.layers, model):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    # An objective reaches into the model for hidden states and the head's weight; as a forward method of
    # the root it finds them gathered.
    model.apply_objective = MethodType(apply_objective, model)  # pyright: ignore[reportArgumentType]
    register_fsdp_forward_method(model, apply_objective.__name__)


def apply_objective(model: Any, objective: Objective, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the objective's sum of losses and number of predictions, whether the model is sharded or not."""
    return objective(model, batch)


def release(model: MobiLlamaForCausalLM) -> None:
    """Free what sharded FFNs gathered for the passes of a micro-batch; a whole model has nothing to free."""
    for ffn in language_of(model).ffns:
        if isinstance(ffn, FSDPModule):
            ffn.reshard()


def reshard(model: MobiLlamaForCausalLM) -> None:
    """Let go of weights that a forward pass without a backward left gathered; the shards bear the names."""
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


def gather(value: Tensor) -> Tensor:
    """Return a whole tensor on the CPU, wherever its parts are. Every rank must call it."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().to("cpu", copy=True)


def place(whole: Tensor, like: Tensor) -> Tensor:
    """Return ``whole`` laid out over the ranks and on the device as ``like`` is."""
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole
