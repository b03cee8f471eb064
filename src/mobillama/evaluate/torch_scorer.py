"""Score questions with a torch model, reading what their answers share once.

One row of a batch is a question: its stem, then its branches one after the other, each of which sees
the stem and itself (a tree of attention). A beginning that all questions of a call share, such as
the worked examples of MMLU, is read once for all of them and kept as a key-value cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from .questions import Branches, Continuation, Question, Score, common_length, first_needed, split

# More fills no more of a core and pads rows of unlike length further.
CPU_BATCH_TOKENS = 512
# Where it does not fit it is halved, and stays so.
CUDA_BATCH_TOKENS = 1 << 17
# Sharing a shorter beginning costs more than it saves.
LEAST_HEADER_TOKENS = 16
PAD = -1
PROBE_TOLERANCE = 1e-2


class TorchScorer:
    """Scores with a causal language model of transformers.

    On opening, the model is tried: one that does not give a branch the same logits as the whole
    sequence (alibi, recurrent states) or looks back through a window is read sequence by sequence.
    """

    def __init__(self, model: PreTrainedModel, *, max_length: int | None = None):
        config = model.config.get_text_config()
        self.model = model.eval()
        self.max_length: int = max_length or getattr(config, "max_position_embeddings", None) or 2048
        self.batch_tokens = CUDA_BATCH_TOKENS if model.device.type == "cuda" else CPU_BATCH_TOKENS
        self._header: tuple[int, ...] = ()
        self._header_cache: list[tuple[Tensor, Tensor]] = []
        self.shares = True
        self.shares = not looks_through_window(config) and self._branches_agree()

    @torch.inference_mode()
    def score(self, questions: Sequence[Question]) -> list[list[Score]]:
        """Return the score of every continuation of every question."""
        if not self.shares:
            flat = [[continuation] for question in questions for continuation in question]
            plans = [Branches(single[0].inputs, ((),)) for single in flat]
            scores = iter(self._score(plans, flat, header=()))
            return [[next(scores)[0] for _ in question] for question in questions]
        plans = [split(question) for question in questions]
        return self._score(plans, questions, self._share_header(plans, questions))

    def _share_header(self, plans: Sequence[Branches], questions: Sequence[Question]) -> tuple[int, ...]:
        """Return the beginning all stems share, read into the cache, or nothing."""
        stems = [plan.stem for plan in plans]
        # What logits are needed of stays with its question.
        length = min(common_length(stems), *map(first_needed, stems, questions))
        if len(plans) < 2 or length < LEAST_HEADER_TOKENS:
            return ()
        header = stems[0][:length]
        if header != self._header:
            cache = DynamicCache(config=self.model.config)
            tokens = torch.tensor([header], device=self.model.device)
            self.model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
            self._header = header
            self._header_cache = [(layer.keys, layer.values) for layer in cache.layers]  # pyright: ignore
        return header

    def _score(
        self, plans: Sequence[Branches], questions: Sequence[Question], header: tuple[int, ...]
    ) -> list[list[Score]]:
        lengths = [len(plan) - len(header) for plan in plans]
        order = sorted(range(len(plans)), key=lambda index: -lengths[index])
        results: list[list[Score]] = [[] for _ in plans]
        start = 0
        while start < len(order):
            rows = max(1, self.batch_tokens // lengths[order[start]])
            batch = order[start : start + rows]
            try:
                scores = self._batch(
                    [plans[index] for index in batch], [questions[index] for index in batch], header
                )
            except torch.cuda.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.batch_tokens //= 2
                torch.cuda.empty_cache()
                continue
            for index, result in zip(batch, scores, strict=True):
                results[index] = result
            start += rows
        return results

    def _batch(
        self, plans: Sequence[Branches], questions: Sequence[Question], header: tuple[int, ...]
    ) -> list[list[Score]]:
        skip, width = len(header), max(map(len, plans)) - len(header)
        tokens = torch.zeros(len(plans), width, dtype=torch.long)  # (B, T)
        positions = torch.zeros(len(plans), width, dtype=torch.long)
        owners = torch.full((len(plans), width), PAD)  # 0 for the stem, n for branch n
        for row, plan in enumerate(plans):
            offset = 0
            for owner, piece in enumerate((plan.stem[skip:], *plan.branches)):
                first = skip if owner == 0 else len(plan.stem)
                end = offset + len(piece)
                tokens[row, offset:end] = torch.tensor(piece, dtype=torch.long)
                positions[row, offset:end] = torch.arange(first, first + len(piece))
                owners[row, offset:end] = owner
                offset = end
        # What answers begin with alike is scored once.
        index: dict[tuple[int, int, int], int] = {}
        slots = [
            index.setdefault((row, *place), len(index))
            for row, (plan, question) in enumerate(zip(plans, questions, strict=True))
            for place in scored_places(plan, question, skip)
        ]
        states, head = self._states(tokens, positions, owners, skip)  # (B, T, D)
        # Logits a block at a time stay in a processor's cache.
        blocks = torch.tensor(list(index)).T.to(states.device).split(self.batch_tokens // 4 or 1, dim=1)
        found = [log_probabilities(head(states[row, column]), target) for row, column, target in blocks]
        chosen, greedy = (torch.cat(parts).cpu()[slots] for parts in zip(*found, strict=True))
        return add_up(chosen, greedy, questions)

    def _states(
        self, tokens: Tensor, positions: Tensor, owners: Tensor, skip: int
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return hidden states (B, T, D), and what makes logits of some of them."""
        device = self.model.device
        if not self.shares:
            # The whole model: some scale or cap their logits after the head.
            return self.model(input_ids=tokens.to(device), use_cache=False).logits, lambda logits: logits
        arguments: dict[str, Any] = {"use_cache": False}
        if int(owners.max()) > 0 or skip:
            arguments["attention_mask"] = tree_mask(owners.to(device), skip, self.model.dtype)
            arguments["position_ids"] = positions.to(device)
        if skip:
            cache = DynamicCache(config=self.model.config)
            for layer, (keys, values) in enumerate(self._header_cache):
                rows = (len(tokens), -1, -1, -1)
                cache.update(keys.expand(rows), values.expand(rows), layer)
            arguments |= {"use_cache": True, "past_key_values": cache}
        states = self.model.base_model(input_ids=tokens.to(device), **arguments).last_hidden_state
        head = self.model.get_output_embeddings()
        assert head is not None
        return states, head

    @torch.inference_mode()
    def _branches_agree(self) -> bool:
        """Try whether this model, used as above, gives what it gives for whole sequences."""
        length = min(24, self.max_length)
        tokens = [(7 * n + 3) % self.model.config.get_text_config().vocab_size for n in range(length)]
        sequences = [tuple(tokens), tuple(tokens[: length // 2] + tokens[: length // 4])]
        question = [Continuation(sequence, len(sequence) // 4) for sequence in sequences]
        try:
            shared = self._score([split(question)], [question], ())[0]
        except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError):
            return False
        for score, continuation in zip(shared, question, strict=True):
            inputs = torch.tensor([continuation.inputs], device=self.model.device)
            logits = self.model(input_ids=inputs).logits[0, continuation.first_scored :]
            targets = torch.tensor(continuation.targets, device=logits.device)
            whole = add_up(*log_probabilities(logits, targets), [[continuation]])[0][0]
            scale = max(1.0, abs(whole.loglikelihood))
            if abs(score.loglikelihood - whole.loglikelihood) > PROBE_TOLERANCE * scale:
                return False
        return True


def looks_through_window(config: Any) -> bool:
    """Return whether some layer sees only the last tokens; the probe is too short to notice."""
    kinds = getattr(config, "layer_types", None) or []
    if kinds:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is not None


def scored_places(plan: Branches, question: Question, skip: int) -> Iterator[tuple[int, int]]:
    """Yield where in a question's row the logits of each target are, and the target."""
    stem, offset = len(plan.stem), len(plan.stem) - skip
    for branch, continuation in zip(plan.branches, question, strict=True):
        for position, target in enumerate(continuation.targets, start=continuation.first_scored):
            yield (position - skip if position < stem else offset + position - stem), target
        offset += len(branch)


def tree_mask(owners: Tensor, skip: int, dtype: torch.dtype) -> Tensor:
    """Return the (B, 1, T, skip + T) mask to add to attention scores: a branch sees the stem and itself."""
    width = owners.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=owners.device).tril()
    seen = (owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None])  # (B, T, T)
    seen = functional.pad(seen & earlier, (skip, 0), value=True)
    mask = torch.zeros(seen.shape, dtype=dtype, device=owners.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def log_probabilities(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each target (N,) under logits (N, V), and whether it is greedy."""
    logits = logits.float()
    at = targets[:, None]
    highest = logits.gather(1, at)[:, 0] == logits.amax(1)
    # Of equals the first is greedy; to look for it in every row would take as long as the softmax.
    highest[highest.clone()] = logits[highest].argmax(1) == targets[highest]
    return logits.log_softmax(1).gather(1, at)[:, 0], highest


def add_up(chosen: Tensor, greedy: Tensor, questions: Sequence[Question]) -> list[list[Score]]:
    """Return scores from the log-probability (N,) of each target in the order of the questions."""
    counts = [continuation.scored for question in questions for continuation in question]
    pieces = iter(
        Score(float(values.sum()), bool(hits.all()))
        for values, hits in zip(chosen.split(counts), greedy.split(counts), strict=True)
    )
    return [[next(pieces) for _ in question] for question in questions]
