"""Where a model's files are: in a checkpoint, in the last checkpoint of a run, or on the Hub. No torch."""

import re
from pathlib import Path

from mobillama.core import records
from mobillama.core.errors import UserError

CHECKPOINTS = "checkpoints"
STEP_DIRECTORY = re.compile(r"step-(\d{8,})")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What models are made of, and the other files that `mobillama publish` puts beside one.
HUB_FILES = [
    "*.json", "*.bin", "*.safetensors", "*.model", "*.jinja", "*.jsonl", "*.toml", "*.md", "*.html",
]  # fmt: skip


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


def is_hub_name(model: str | Path) -> bool:
    """Return whether `model` can only be a name on the Hub."""
    return HUB_NAME.fullmatch(str(model)) is not None and not Path(model).exists()


def download(name: str) -> Path:
    """Return a local folder with a Hub model's files; what an earlier, broken download got is kept.

    Raises:
        UserError: there is no such model, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{name}: no such folder here, nor to be had from the Hub: {reason}") from error


def locate(model: str | Path) -> Path:
    """Return the directory with the `config.json` that `model` means; from the Hub it is fetched.

    Raises:
        UserError: there is no such directory, or neither a model nor a run's checkpoint in it.
    """
    if is_hub_name(model):
        return download(str(model))
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
