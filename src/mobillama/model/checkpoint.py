"""Where a model's files are: in a checkpoint, or in the last checkpoint of a run. No torch."""

import re
from pathlib import Path

from mobillama.core import records
from mobillama.core.errors import UserError

CHECKPOINTS = "checkpoints"
STEP_DIRECTORY = re.compile(r"step-(\d{8,})")


def last_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint of the highest step in a run directory, or None."""
    steps = {
        int(match.group(1)): path
        for path in (run / CHECKPOINTS).glob("step-*")
        if (match := STEP_DIRECTORY.fullmatch(path.name)) and (path / "config.json").is_file()
    }
    return steps[max(steps)] if steps else None


def require_intact(directory: Path) -> None:
    """Check every file of a model folder that has a manifest; those of others have none.

    Raises:
        UserError: the first thing that is wrong.
    """
    if (directory / records.MANIFEST).is_file():
        records.require_intact(directory)


def locate(model: str | Path) -> Path:
    """Return the directory with the `config.json` that `model` means.

    Raises:
        UserError: there is no such directory, or neither a model nor a run's checkpoint in it.
    """
    directory = Path(model)
    if (directory / "config.json").is_file():
        return directory
    if not directory.is_dir():
        raise UserError(f"{model}: no such directory; give a checkpoint, a run or a model folder")
    checkpoint = last_checkpoint(directory)
    if checkpoint is None:
        raise UserError(
            f"{model}: neither a model (no config.json) nor a run with a checkpoint (no {CHECKPOINTS}/step-*)"
        )
    return checkpoint
