"""Our scorers as a model of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mobillama.core.errors import UserError
from mobillama.engine import GREEDY, GenerationOptions, LanguageModel

from .questions import Continuation, Cut, Scorer, cut_to_fit

Encoded = tuple[tuple[str, str], list[int], list[int]]


class Encoder(Protocol):
    """Text to token ids, many texts at a time."""

    def __call__(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Return the ids of each text; with `special` after the tokens a text begins with."""
        ...


class SharedPrefixLM(TemplateLM):
    """A model for lm-eval whose multiple-choice questions are read once, not once for each choice.

    Arguments:
        encode: the model's tokenizer.
        prefix_token: what stands before a text without context.
        prefix_text: how that token is spelled; a text that begins so gets no second one.
        writer: answers open questions (`generate_until`), where the model can.
        cut: where questions that do not fit are cut; see `questions.cut_to_fit`.
    """

    def __init__(
        self,
        scorer: Scorer,
        encode: Encoder,
        *,
        prefix_token: int,
        prefix_text: str,
        writer: Callable[[], LanguageModel] | None = None,
        cut: Cut = "question",
    ):
        super().__init__()
        self.scorer = scorer
        self.encode = encode
        self.cut: Cut = cut
        self.cut_tokens: list[int] = []
        """How many tokens each question of the last call lost to fit."""
        self._prefix_token, self._prefix_text, self._writer = prefix_token, prefix_text, writer

    @property
    def eot_token_id(self) -> int:
        """The token that stands before a text without context."""
        return self._prefix_token

    @property
    def max_length(self) -> int:
        """The most tokens of input."""
        return self.scorer.max_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text as lm-eval's own Hugging Face model would."""
        special = (
            not string.startswith(self._prefix_text) if add_special_tokens is None else add_special_tokens
        )
        return self.encode([string], special=special)[0]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-likelihood, and whether it is the greedy one.

        Requests of one document that follow each other are scored together.
        """
        pairs: Any = [request.args for request in requests]
        encoded = iter(self.encode_pairs(pairs))
        keys = [
            (request.task_name, request.args[0] if request.doc_id is None else request.doc_id)
            for request in requests
        ]
        groups = [[next(encoded) for _ in group] for _, group in groupby(keys)]
        return self._score(groups)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Return the ids of each context and continuation; both are spelled as one text and then parted."""
        moved = []
        for context, continuation in pairs:
            blanks = len(context) - len(context.rstrip())
            moved.append((context[: len(context) - blanks], context[len(context) - blanks :] + continuation))
        contexts = {context: [] for context, _ in moved if context}
        texts = [*contexts, *(context + continuation for context, continuation in moved)]
        ids = self._encode_all(texts, [True] * len(contexts) + [bool(context) for context, _ in moved])
        contexts = dict(zip(contexts, ids, strict=False))
        encoded = []
        for (context, continuation), whole in zip(moved, ids[len(contexts) :], strict=True):
            if not context:
                # lm-eval's rule: a text of its own follows the prefix token, once.
                start = 1 if whole[:1] == [self._prefix_token] else 0
                encoded.append(([self._prefix_token], whole[start:]))
                continue
            length = len(contexts[context])
            if length >= len(whole):
                raise UserError(f"the tokenizer gives {continuation!r} no token of its own after its context")
            encoded.append((contexts[context], whole[length:]))
        return encoded

    def _encode_all(self, texts: list[str], special: list[bool]) -> list[list[int]]:
        special = [
            wanted and not text.startswith(self._prefix_text)
            for text, wanted in zip(texts, special, strict=True)
        ]
        ids: list[list[int]] = [[] for _ in texts]
        for value in (False, True):
            chosen = [index for index, wanted in enumerate(special) if wanted is value]
            for index, found in zip(
                chosen, self.encode([texts[index] for index in chosen], special=value), strict=True
            ):
                ids[index] = found
        return ids

    def _score(self, groups: Sequence[Sequence[tuple[list[int], list[int]]]]) -> list[tuple[float, bool]]:
        questions, self.cut_tokens = [], []
        for group in groups:
            question = [Continuation((*context, *target), len(target)) for context, target in group]
            longest = max(continuation.scored for continuation in question)
            if longest > self.max_length:
                raise UserError(f"an answer of {longest} tokens exceeds the model's {self.max_length}")
            fitted, excess = cut_to_fit(question, self.max_length, self.cut)
            self.cut_tokens.append(max(0, excess))
            questions.append(fitted)
        scores = self.scorer.score(questions) if questions else []
        return [(score.loglikelihood, score.greedy) for group in scores for score in group]

    def _loglikelihood_tokens(self, requests: list[Encoded], **kwargs: Any) -> list[tuple[float, bool]]:
        return self._score([[(context, target)] for _, context, target in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows that predict every token once."""
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            totals.append(sum(score for score, _ in self._score([[pair] for pair in pairs])))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy answer to each prompt, up to its stop strings."""
        if self._writer is None:
            raise UserError("this model only scores; choose tasks without open answers")
        writer, answers = self._writer(), []
        for request in requests:
            arguments: Any = request.args
            prompt, options = arguments
            if options.get("do_sample"):
                raise UserError(
                    f"{request.task_name}: asks for sampled answers; only greedy ones are given here"
                )
            stops = options.get("until") or []
            most = options.get("max_gen_toks", 256)
            tokens = self.tok_encode(prompt)[-max(1, self.max_length - most) :]
            events = writer.generate(
                tokens,
                GenerationOptions(
                    max_tokens=most,
                    stop=tuple([stops] if isinstance(stops, str) else stops),
                    sampling=GREEDY,
                ),
            )
            answers.append("".join(event.text for event in events))
        return answers
