"""The whole recipe: what to prepare, what to build, how to train it, what to keep and to measure."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from mobillama.core.config import Section
from mobillama.data.recipe import CorpusSection, DataSection
from mobillama.model.checkpoint import locate
from mobillama.model.recipe import ModelSection

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class OptimizerSection(Section):
    """How weights follow gradients, ``[train.optimizer]``."""

    kind: Literal["adamw", "muon"] = "adamw"
    """``muon`` orthogonalises the updates of the layers' matrices; everything else stays on AdamW."""
    lr: Positive = 3e-4
    """AdamW's learning rate at the top of the schedule."""
    muon_lr: Positive = 0.02
    ffn_lr_factor: Positive = 1.0
    """Multiplies the learning rate of the FFNs, whose gradient is a sum over the layers that share them."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    muon_momentum: Share = 0.95


class ScheduleSection(Section):
    """The learning rate over a run, as a factor of its top, ``[train.schedule]``."""

    kind: Literal["cosine", "wsd"] = "cosine"
    """``wsd``: warm up, hold, then decay linearly over the last ``decay_share`` of the steps."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_share: Share = 0.2
    final_factor: Share = 0.1
    batch_ramp_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the batch grows, in four equal stairs, from a quarter of its size to all of it."""


class TrainSection(Section):
    """One run, ``[train]``. The shortest of the limits ends it."""

    objective: Literal["next-token", "distill"] = "next-token"
    """``distill`` learns from the teacher that ``[distill]`` names."""
    batch_tokens: PositiveInt | None = None
    """Tokens of one optimizer step, over all ranks, where samples are text of one length."""
    batch_samples: PositiveInt | None = None
    """Samples of one optimizer step, over all ranks, where their lengths differ."""
    micro_batch: PositiveInt = 8
    """Samples of one forward and backward pass on one rank."""
    max_steps: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    max_epochs: Positive | None = None
    """Passes over the mixture."""
    max_minutes: Positive | None = None
    """Turned into a number of steps once, from the speed of the first passes; see docs/training.md."""
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    clip_norm: Positive = 1.0
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean squared log-partition, which keeps logits from drifting."""
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = False
    checkpoint_activations: bool = False
    average_decay: Share = 0.0
    """Above 0, an exponential moving average of the weights is kept in every checkpoint's trainer state."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Processor threads; 0 takes all. Repeating a run bit for bit needs the same number."""
    log_every: PositiveInt = 1

    @model_validator(mode="after")
    def _ends(self) -> "TrainSection":
        if not (self.max_steps or self.max_tokens or self.max_epochs or self.max_minutes):
            raise ValueError("give max_steps, max_tokens, max_epochs or max_minutes")
        return self


class DistillSection(Section):
    """Learning from another model, ``[distill]``."""

    teacher: Path
    """A checkpoint, a run (its last) or a converted model with the same tokenizer."""
    temperature: Positive = 1.0
    label_share: Share = 0.0
    """Part of the loss that is cross-entropy with the text itself."""
    hidden_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the hidden states' relative squared distance; needs the teacher's hidden size."""

    @field_validator("teacher")
    @classmethod
    def _which_checkpoint(cls, teacher: Path) -> Path:
        # A run that goes on has another last checkpoint tomorrow.
        return locate(teacher) if teacher.exists() else teacher


class CheckpointSection(Section):
    """What to keep, ``[checkpoint]``. Weights are kept for good; state to resume from is large and is not."""

    count: Annotated[int, Field(ge=0)] = 10
    """Checkpoints evenly spaced over the run, beside the last; 0 leaves spacing to the other keys."""
    every_steps: PositiveInt | None = None
    every_tokens: PositiveInt | None = None
    every_minutes: Positive | None = None
    """By the clock: where these fall is not repeatable, what they hold is."""
    keep_states: PositiveInt = 2
    """The newest optimizer states that stay."""
    keep_state_every: Annotated[int, Field(ge=0)] = 0
    """Every so many checkpoints the state stays too, for ``replay``; 0 for none."""


class EvaluateSection(Section):
    """Held-out measurement during training, ``[evaluate]``."""

    every_steps: Annotated[int, Field(ge=0)] = 0
    """0 measures at checkpoints only."""
    bytes: PositiveInt | None = None
    """Held-out text per subset to measure between checkpoints; all of it at the end."""
    samples: PositiveInt | None = None
    """Held-out conversations to measure between checkpoints, where samples are conversations."""
    batch: PositiveInt = 16


class SampleSection(Section):
    """What the model is asked to continue at each checkpoint, ``[sample]``."""

    prompts: tuple[str, ...] = ()
    tokens: PositiveInt = 48
    temperature: Annotated[float, Field(ge=0)] = 0.7


class RunRecipe(Section):
    """What every run's recipe says, whatever it learns."""

    name: str
    seed: int = 0
    run_dir: Path
    model: ModelSection
    train: TrainSection
    checkpoint: CheckpointSection = CheckpointSection()
    evaluate: EvaluateSection = EvaluateSection()

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimizer step, over all ranks."""
        assert self.train.batch_samples
        return self.train.batch_samples


class Recipe(RunRecipe):
    """A recipe file for a model of text."""

    corpus: CorpusSection
    data: DataSection = DataSection()
    distill: DistillSection | None = None
    sample: SampleSection = SampleSection()

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimizer step, over all ranks."""
        assert self.train.batch_tokens
        return self.train.batch_tokens // self.data.sequence_length

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> "Recipe":
        if (self.train.objective == "distill") != (self.distill is not None):
            raise ValueError('train.objective = "distill" and distill.teacher go together; give both')
        return self

    @model_validator(mode="after")
    def _whole_batches(self) -> "Recipe":
        if self.train.batch_tokens is None or self.train.batch_samples is not None:
            raise ValueError("give train.batch_tokens, and no train.batch_samples: samples are of one length")
        if self.train.batch_tokens % self.data.sequence_length:
            raise ValueError(
                f"train.batch_tokens = {self.train.batch_tokens} is no multiple of "
                f"data.sequence_length = {self.data.sequence_length}"
            )
        return self
