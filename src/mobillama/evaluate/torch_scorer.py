"""Score questions with a torch model, reading what their answers share once.

One row of a batch is a question: its stem, then its branches one after the other, each of which sees
the stem and itself (a tree of attention). A beginning that all questions of a call share, such as
the worked examples of MMLU, is read once for all of them and kept as a key-value cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from .questions import Branches, Continuation, Question, Score, common_length, split

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
        return self._score(plans, questions, self._share_header(plans))

    def _share_header(self, plans: Sequence[Branches]) -> tuple[int, ...]:
        """Return the beginning all stems share, read into the cache, or nothing."""
        stems = [plan.stem for plan in plans]
        # The last token of a stem stays with its question, for its logits.
        length = min(common_length(stems), min(map(len, stems)) - 1)
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
        wanted = [
            (row, position)
            for row, (plan, question) in enumerate(zip(plans, questions, strict=True))
            for position in scored_positions(plan, question, skip)
        ]
        index = torch.tensor(wanted).T.to(self.model.device)  # (2, N)
        logits = self._logits(tokens, positions, owners, index, skip)  # (N, V)
        targets = [token for question in questions for one in question for token in one.targets]
        return gather_scores(logits, torch.tensor(targets, device=logits.device), questions)

    def _logits(self, tokens: Tensor, positions: Tensor, owners: Tensor, index: Tensor, skip: int) -> Tensor:
        """Return float32 logits (N, V) at the (row, column) pairs of `index` (2, N)."""
        device = self.model.device
        if not self.shares:
            # The whole model: some scale or cap their logits after the head.
            return self.model(input_ids=tokens.to(device), use_cache=False).logits[index[0], index[1]].float()
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
        hidden = self.model.base_model(input_ids=tokens.to(device), **arguments).last_hidden_state
        head = self.model.get_output_embeddings()
        assert head is not None
        return head(hidden[index[0], index[1]]).float()

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
            logits = self.model(input_ids=inputs).logits[0, continuation.first_scored :].float()
            whole = gather_scores(
                logits, torch.tensor(continuation.targets, device=logits.device), [[continuation]]
            )[0][0]
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


def scored_positions(plan: Branches, question: Question, skip: int) -> Iterator[int]:
    """Yield where in a question's row the logits of its targets are, in the order of the targets."""
    stem, offset = len(plan.stem), len(plan.stem) - skip
    for branch, continuation in zip(plan.branches, question, strict=True):
        for position in range(continuation.first_scored, len(continuation.inputs)):
            yield position - skip if position < stem else offset + position - stem
        offset += len(branch)


def tree_mask(owners: Tensor, skip: int, dtype: torch.dtype) -> Tensor:
    """Return the (B, 1, T, skip + T) mask to add to attention scores: a branch sees the stem and itself."""
    width = owners.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=owners.device).tril()
    seen = (owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None])  # (B, T, T)
    seen = functional.pad(seen & earlier, (skip, 0), value=True)
    mask = torch.zeros(seen.shape, dtype=dtype, device=owners.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def gather_scores(logits: Tensor, targets: Tensor, questions: Sequence[Question]) -> list[list[Score]]:
    """Return scores from the logits (N, V) and ids (N,) of all targets, in the order of the questions."""
    chosen = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
    greedy = logits.argmax(1) == targets
    counts = [continuation.scored for question in questions for continuation in question]
    pieces = iter(
        Score(float(values.sum()), bool(hits.all()))
        for values, hits in zip(chosen.split(counts), greedy.split(counts), strict=True)
    )
    return [[next(pieces) for _ in question] for question in questions]
