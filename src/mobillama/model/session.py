"""A model and its cache as one running sequence, for the generation code that knows no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from mobillama.core.errors import UserError

from . import loading


class TorchSession:
    """One sequence in a causal language model: feed tokens, get logits, go back.

    `position` tokens are in the cache. Any Hugging Face causal language model serves whose cache
    can be cropped.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self.model = model.eval()
        self.context_length: int = config.max_position_embeddings
        self.vocab_size: int = config.vocab_size
        self.reset()

    @classmethod
    def load(cls, model: str | Path, *, device: str | None = None, dtype: str = "auto") -> TorchSession:
        """Return a session on a model as `loading.load_language_model` finds and loads it."""
        return cls(loading.load_language_model(model, device=device, dtype=dtype))

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        return int(self.cache.get_seq_length())

    @property
    def split_tolerance(self) -> float:
        """By how much a logit may differ when the same tokens come in other batches; speculation asks.

        Measured on small models: 5e-5 in float32 and 0.19 in bfloat16, where logits reach 7.
        """
        return 1e-2 if self.model.dtype == torch.float32 else 0.5

    def reset(self) -> None:
        """Forget the sequence."""
        self.cache = DynamicCache(config=self.model.config)

    def truncate(self, position: int) -> None:
        """Forget everything after the first `position` tokens."""
        if not 0 <= position <= self.position:
            raise ValueError(f"position {position} is not within the {self.position} tokens of the sequence")
        self.cache.crop(position - self.position)

    def forward(self, tokens: NDArray[np.int32], all_logits: bool = False) -> NDArray[np.float32]:
        """Append tokens and return logits, (vocab_size,) of the last or (T, vocab_size) of each.

        Raises:
            UserError: the tokens do not fit into the context.
        """
        input_ids = torch.as_tensor(np.asarray(tokens, dtype=np.int64), device=self.model.device)
        return self._forward(len(tokens), all_logits, input_ids=input_ids.unsqueeze(0))

    def forward_embeddings(
        self, embeddings: NDArray[np.float32], all_logits: bool = False
    ) -> NDArray[np.float32]:
        """As `forward`, from input embeddings (T, hidden_size) in place of tokens."""
        rows = torch.as_tensor(embeddings).to(self.model.device, self.model.dtype)
        return self._forward(len(rows), all_logits, inputs_embeds=rows.unsqueeze(0))

    @torch.inference_mode()
    def _forward(self, count: int, all_logits: bool, **inputs: torch.Tensor) -> NDArray[np.float32]:
        if not count:
            raise ValueError("give at least one token")
        if (length := self.position + count) > self.context_length:
            raise UserError(f"{length} tokens do not fit: the model's context is {self.context_length}")
        arguments: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True}
        outputs = self.model(**inputs, logits_to_keep=0 if all_logits else 1, **arguments)
        logits = outputs.logits[0].float().cpu().numpy()
        return logits if all_logits else logits[-1]
