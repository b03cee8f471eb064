"""What a model's matrices see: the second moments of their inputs over a calibration text."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from mobillama.core.errors import UserError
from mobillama.core.progress import progress

# Enough rows that every Hessian has full rank several times over, and minutes, not hours, on a laptop.
MOST_TOKENS = 65_536
WINDOW_TOKENS = 512

# Projections that read the same input share one Hessian, gathered at the first of them.
READS_WITH = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


class Moments:
    """The running sum of `x x^T` of one projection's inputs x; a shared FFN adds to it at every layer."""

    def __init__(self, columns: int):
        self.sum = torch.zeros(columns, columns)
        self.count = 0

    def add(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Take in a projection's input (..., columns), as a forward pre-hook."""
        rows = inputs[0].detach().flatten(0, -2).float()
        self.sum.addmm_(rows.T, rows)
        self.count += len(rows)

    @property
    def mean(self) -> Tensor:
        """The Hessian of a squared output error, up to a constant: (columns, columns)."""
        return self.sum / max(self.count, 1)


class Calibration:
    """Hessians by weight name."""

    def __init__(self, moments: dict[str, Moments]):
        self._moments = moments

    def hessian(self, weight: str) -> Tensor | None:
        """Return the Hessian for a weight of the checkpoint, None for what is no projection."""
        module, _, _ = weight.rpartition(".weight")
        parent, _, name = module.rpartition(".")
        moments = self._moments.get(f"{parent}.{READS_WITH.get(name, name)}")
        return moments.mean if moments is not None and moments.count else None


@torch.inference_mode()
def calibrate(model: PreTrainedModel, tokenizer: Tokenizer, text: Path) -> Calibration:
    """Run ``model`` over a text file and return what its projections saw.

    Raises:
        UserError: the file cannot be read or holds less than one window of tokens.
    """
    try:
        tokens = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text}: {error}; give a UTF-8 text file") from None
    window = min(WINDOW_TOKENS, model.config.max_position_embeddings)
    windows = torch.tensor(spread(tokens, window), dtype=torch.long)
    if not len(windows):
        raise UserError(f"{text}: {len(tokens)} tokens; at least {window} are needed to calibrate")
    moments, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in READS_WITH:
            moments[name] = Moments(module.in_features)
            handles.append(module.register_forward_pre_hook(moments[name].add))
    try:
        with progress("calibrating", windows.numel(), "tokens") as advance:
            for number, row in enumerate(windows, start=1):
                model(input_ids=row[None], use_cache=False)
                advance(number * window)
    finally:
        for handle in handles:
            handle.remove()
    return Calibration(moments)


def spread(tokens: list[int], window: int) -> list[list[int]]:
    """Return windows of tokens from all over the text, at most `MOST_TOKENS` in all."""
    starts = range(0, len(tokens) - window + 1, window)
    stride = max(1, -(-len(starts) * window // MOST_TOKENS))
    return [tokens[start : start + window] for start in starts[::stride]]
