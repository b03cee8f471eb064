"""The parts of a recipe this package reads: ``[corpus]``, what to prepare, and ``[data]``, how to read it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from mobillama.core.config import Section

Kind = Literal["jsonl", "parquet", "text", "directory", "hub", "stdlib"]
SubsetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Proportion = Annotated[float, Field(ge=0, le=1)]

MIB = 1 << 20


class SubsetSection(Section):
    """One source of documents, ``[[corpus.subsets]]``; sources of one name form one subset."""

    name: SubsetName
    kind: Kind
    paths: tuple[str, ...] = ()
    """Files (or folders, for ``directory``), relative to ``corpus.root``; ``*`` and ``**`` are patterns."""
    pattern: str = "**/*"
    """For ``directory``: which files of a folder are documents."""
    part: Literal["docs", "code"] | None = None
    """For ``stdlib``: the docstrings and documentation topics, or the source code."""
    hub: str | None = None
    """For ``hub``: the data set's name, or a local folder that ``datasets`` can read."""
    hub_config: str | None = None
    hub_split: str = "train"
    hub_revision: str | None = None
    text_field: str = "text"
    id_field: str | None = None
    """Without it a document's id is its file and line."""
    source_field: str | None = None
    """Without it a document's source is its file."""
    license_field: str | None = None
    license: str | None = None
    """One licence for all documents, where they do not carry their own."""
    group_by: str | None = None
    """Field whose value keeps documents on one side of the held-out split, such as a novel's title."""
    heldout_bytes: Annotated[int, Field(ge=0)] | None = None
    """Overrides ``corpus.heldout_bytes`` for this subset."""
    filters: "FilterSection | None" = None
    """Overrides ``corpus.filters`` for this source."""

    @model_validator(mode="after")
    def _complete(self) -> "SubsetSection":
        if self.kind == "stdlib":
            if self.part is None:
                raise ValueError(f'subset {self.name}: kind = "stdlib" needs part = "docs" or "code"')
            return self
        if self.kind == "hub" and not self.hub:
            raise ValueError(f'subset {self.name}: kind = "hub" needs hub = "owner/name"')
        if self.kind != "hub" and not self.paths:
            raise ValueError(f'subset {self.name}: kind = "{self.kind}" needs paths')
        if (self.license is None) == (self.license_field is None):
            raise ValueError(f"subset {self.name}: give either license or license_field")
        if self.kind in ("text", "directory") and (self.license_field or self.group_by):
            raise ValueError(f"subset {self.name}: plain text has no fields; give license, without group_by")
        return self


class FilterSection(Section):
    """Which documents are worth keeping, ``[corpus.filters]``."""

    min_bytes: Annotated[int, Field(ge=1)] = 100
    max_duplicate_lines: Proportion = 0.5
    """Most of a text, by characters, that may stand in lines seen before in it (MassiveText's measure)."""
    max_duplicate_ngrams: Proportion = 0.5
    """Most of a text's word 5-grams that may have occurred before in it."""
    languages: tuple[str, ...] = ()
    """Codes such as ``en``; empty keeps every language. Needs fastText's model, which is downloaded once."""
    language_threshold: Proportion = 0.65


class DeduplicationSection(Section):
    """Which documents say the same, ``[corpus.deduplication]``."""

    exact: bool = True
    near: bool = True
    """MinHash over word 5-grams in 14 bands of 8: finds most pairs of Jaccard similarity above 0.72.
    Switched off, what is like a held-out document still stays out of training."""


class TokenizerSection(Section):
    """Train a byte-level BPE, or take one that exists, ``[corpus.tokenizer]``."""

    vocab_size: Annotated[int, Field(ge=257)] = 32_000
    sample_bytes: PositiveInt = 64 * MIB
    """Most training text that merges are learnt from; subsets give equal parts, small ones all they have."""
    path: Path | None = None
    """A ``tokenizer.json`` to use as it is; ``vocab_size`` is then its own."""
    end_of_text: str = "<|endoftext|>"


class ExecutorSection(Section):
    """Where preparation runs, ``corpus.executor = {kind = "slurm", partition = "cpu"}``."""

    kind: Literal["local", "slurm", "ray"] = "local"
    partition: str = "cpu"
    time: str = "24:00:00"
    mem_per_cpu_gb: PositiveInt = 4

    @property
    def time_limit_s(self) -> int:
        hours, minutes, seconds = (int(part) for part in self.time.split(":"))
        return (hours * 60 + minutes) * 60 + seconds


class CorpusSection(Section):
    """What ``mobillama prepare`` makes, ``[corpus]``."""

    directory: Path
    root: Path = Path()
    """Folder that relative paths of sources start from; the current one when not given."""
    subsets: Annotated[list[SubsetSection], Field(min_length=1)]
    tokenizer: TokenizerSection = TokenizerSection()
    filters: FilterSection = FilterSection()
    deduplication: DeduplicationSection = DeduplicationSection()
    heldout_bytes: Annotated[int, Field(ge=0)] = 200_000
    """Text to hold out of each subset, at least; never more than a tenth of it."""
    on_bad: Literal["stop", "quarantine"] = "stop"
    max_document_bytes: PositiveInt = 20 * MIB
    """A longer document is bad input: nearly always a missing newline or a dump."""
    shard_bytes: PositiveInt = 32 * MIB
    """Text that goes into one shard of tokens, and into one task of reading small files."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes at once; 0 takes one for each processor."""
    executor: ExecutorSection = ExecutorSection()

    @model_validator(mode="after")
    def _consistent(self) -> "CorpusSection":
        targets: dict[str, int] = {}
        for subset in self.subsets:
            if subset.heldout_bytes is None:
                continue
            if targets.setdefault(subset.name, subset.heldout_bytes) != subset.heldout_bytes:
                raise ValueError(f"subset {subset.name}: two different heldout_bytes; keep one")
        return self

    @property
    def names(self) -> list[str]:
        """The subsets' names, in the order they first appear."""
        return list(dict.fromkeys(subset.name for subset in self.subsets))

    def heldout_target(self, name: str) -> int:
        """Return how many bytes subset ``name`` should hold out."""
        given = [s.heldout_bytes for s in self.subsets if s.name == name and s.heldout_bytes is not None]
        return given[0] if given else self.heldout_bytes


class DataSection(Section):
    """How training reads a corpus, ``[data]``; none of it needs a new preparation."""

    sequence_length: PositiveInt = 2048
    document_mask: bool = False
    """Attention and positions restart at each document."""
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Share of the samples by subset; need not sum to one. One mixture epoch is as long as the corpus."""
    epochs: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Passes over each subset in one mixture epoch; one pass over everything when neither is given."""

    @model_validator(mode="after")
    def _one_mixture(self) -> "DataSection":
        if self.weights is not None and self.epochs is not None:
            raise ValueError("give data.weights or data.epochs, not both")
        for mixture in (self.weights, self.epochs):
            if mixture is not None and not any(mixture.values()):
                raise ValueError("every subset has weight 0; give at least one a share")
        return self
