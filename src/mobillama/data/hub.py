"""Hugging Face data sets, streamed: nothing is stored but what a task is reading."""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

from collections.abc import Iterator
from typing import Any

from mobillama.core.errors import UserError, require_extra

from .recipe import SubsetSection


def shard_count(source: SubsetSection) -> int:
    """Return how many parts the data set can be read in at once."""
    return max(1, stream(source).num_shards)


def rows(source: SubsetSection, shard: int, shards: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one of ``shards`` parts."""
    yield from stream(source).shard(num_shards=shards, index=shard)


def stream(source: SubsetSection) -> Any:
    """Open the data set for streaming.

    Raises:
        UserError: it cannot be opened; says why.
    """
    require_extra("train", "datasets")
    from datasets import load_dataset

    assert source.hub is not None
    try:
        return load_dataset(
            source.hub,
            source.hub_config,
            split=source.hub_split,
            revision=source.hub_revision,
            streaming=True,
        )
    except Exception as error:  # the library raises whatever its network client, parser or builder does
        reason = str(error).splitlines()[0]
        raise UserError(
            f"subset {source.name}: data set {source.hub} cannot be opened ({type(error).__name__}: {reason})"
        ) from error
