"""Released MobiLlama checkpoints: found on the Hub, read in every form they were published in."""

import re
from pathlib import Path

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_name(model: str) -> bool:
    """Return whether `model` can only be a name on the Hub."""
    return HUB_NAME.fullmatch(model) is not None and not Path(model).exists()


def download(name: str) -> Path:
    """Return a local folder with a Hub model's files; what an earlier, broken download got is kept."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["*.json", "*.bin", "*.safetensors", "*.model"]))
