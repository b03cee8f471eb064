"""Distillation: a model learns to predict what a frozen teacher predicts, on the same text."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mobillama.core.errors import UserError
from mobillama.model.loading import load_language_model

from . import attention
from .objectives import IGNORED, Batch, CrossEntropy, HeadLoss
from .recipe import DistillSection

PROBE_TOKENS = 8


class Distillation:
    """Divergence of the model's next-token distribution from its teacher's, in nats.

    With ``label_share``, cross-entropy with the text takes that part of it; with ``hidden_weight``, the
    hidden states' relative squared distance to the teacher's is added.

    Source: Hinton et al. 2015 (arXiv 1503.02531) for the divergence at a temperature; Jiao et al. 2020
    (TinyBERT, section 3.1) for hidden states and the map of layers, here without learned projections.
    """

    def __init__(self, teacher: PreTrainedModel, section: DistillSection):
        self.teacher = teacher.requires_grad_(False)
        self.section = section
        head = teacher.get_output_embeddings()
        assert head is not None
        self.head: Tensor = head.weight  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the sum of losses and the number of predictions."""
        section, hidden = self.section, self.section.hidden_weight > 0
        arguments = {"input_ids": batch["input_ids"], "position_ids": batch.get("position_ids")}
        arguments |= {"use_cache": False, "output_hidden_states": hidden}
        with torch.no_grad():
            theirs = self.teacher.base_model(**arguments)
        ours = model.model(**arguments)
        labels = batch["labels"].flatten()
        criterion = Imitation(labels, theirs.last_hidden_state.flatten(0, 1), self.head, section)
        losses = HeadLoss.apply(ours.last_hidden_state.flatten(0, 1), model.lm_head.weight, criterion)
        if hidden:
            counted = (batch["labels"] != IGNORED).float()
            losses = losses + section.hidden_weight * hidden_distance(
                ours.hidden_states[1:], theirs.hidden_states[1:], counted
            )
        return losses, (labels != IGNORED).sum()


class Imitation:
    """The divergence of a student's logits from a teacher's at each position, for ``HeadLoss``.

    With p the teacher's and q the student's distribution at temperature t, the loss is t^2 KL(p || q), so
    that its gradient does not shrink with the temperature.

    Arguments:
        labels: (N,) int64; where they are ``IGNORED``, nothing counts.
        states: (N, teacher's hidden_size), what the teacher's head reads.
        head: (vocab_size, teacher's hidden_size).
    """

    def __init__(self, labels: Tensor, states: Tensor, head: Tensor, section: DistillSection):
        self.states, self.head, self.section = states, head.to(states.dtype), section
        self.labels, self.text = labels, CrossEntropy(labels)

    def __call__(self, logits: Tensor, block: slice) -> tuple[Tensor, Tensor]:
        """Return the sum of losses and its gradient by the logits."""
        heat, share = self.section.temperature, self.section.label_share
        counted = (self.labels[block] != IGNORED).float().unsqueeze(1)
        log_p = torch.log_softmax((self.states[block] @ self.head.T).float() / heat, dim=-1)
        log_q = torch.log_softmax(logits / heat, dim=-1)
        p = log_p.exp()
        loss = heat**2 * (p * log_p.sub_(log_q) * counted).sum()
        slopes = log_q.exp_().sub_(p).mul_(heat * counted)
        if share:
            text_loss, text_slopes = self.text(logits, block)
            loss, slopes = torch.lerp(loss, text_loss, share), slopes.lerp_(text_slopes, share)
        return loss, slopes


def hidden_distance(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], counted: Tensor) -> Tensor:
    """Return the relative squared distance of hidden states, averaged over our layers, summed over positions.

    Our layer i of n is held against the teacher's at the same share of its depth.

    Arguments:
        ours, theirs: one (B, T, hidden_size) a layer.
        counted: (B, T), 1 where a position counts.
    """
    total = torch.zeros((), device=counted.device)
    for layer, states in enumerate(ours, start=1):
        wanted = theirs[round(layer * len(theirs) / len(ours)) - 1].float()
        distance = (states.float() - wanted).square().sum(-1) / wanted.square().sum(-1)  # (B, T)
        total = total + (distance * counted).sum()
    return total / len(ours)


def open_teacher(section: DistillSection, student: Any, dtype: torch.dtype) -> PreTrainedModel:
    """Return the frozen teacher, on the student's device.

    Raises:
        UserError: it cannot be read, or its vocabulary or (for hidden states) its width is another.
    """
    teacher = load_language_model(section.teacher, device=student.device, dtype=dtype)
    if teacher.device.type == "cpu":
        teacher.set_attn_implementation(attention.SHORT_CAUSAL)
    wanted = ["vocab_size", *(["hidden_size"] if section.hidden_weight else [])]
    for name in wanted:
        its, ours = getattr(teacher.config, name), getattr(student.config, name)
        if its != ours:
            raise UserError(
                f"{section.teacher}: the teacher's {name} is {its}, the model's {ours}; they must agree"
            )
    tokens = torch.arange(PROBE_TOKENS, device=teacher.device).unsqueeze(0) % teacher.config.vocab_size
    with torch.no_grad():
        whole = teacher(input_ids=tokens, use_cache=False).logits
        states = teacher.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        plain = states @ teacher.get_output_embeddings().weight.T  # pyright: ignore
    if not torch.allclose(whole.float(), plain.float(), rtol=1e-2, atol=1e-2):
        raise UserError(
            f"{section.teacher}: its head does more than multiply; such a teacher is not supported"
        )
    return teacher
