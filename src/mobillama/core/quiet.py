"""Holding back what a library tells of its own steps."""

import contextlib
import logging
import warnings
from collections.abc import Generator


@contextlib.contextmanager
def quiet(logger: str) -> Generator[None, None, None]:
    """Let pass only errors of a logger, and no warnings."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
