"""A name on the Hub is taken wherever a model is; the Hub's own client fetches and goes on."""

import sys

import huggingface_hub
import pytest
from fixture_checkpoint import write_checkpoint

from mobillama import cli


@pytest.fixture
def command(capsys, monkeypatch):
    """Return what runs a command line in this process and gives its status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mobillama", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with one model; returns its local copy."""
    write_checkpoint(tmp_path / "snapshot")

    def fetch(name, **options):
        if name != "somebody/tiny":
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"no {name}")
        assert {"*.bin", "*.safetensors", "*.json"} <= set(options["allow_patterns"])
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return tmp_path / "snapshot"


def test_generate_takes_a_hub_name(command, hub):
    rest = ("--prompt", "import json", "--max-tokens", "8", "--temperature", "0")
    status, fetched, errors = command("generate", "somebody/tiny", *rest)
    assert status == 0, errors
    assert fetched == command("generate", hub, *rest)[1] != "\n"


def test_quantize_and_convert_take_a_hub_name(command, hub, tmp_path):
    assert command("quantize", "somebody/tiny", "--out", tmp_path / "m.gguf")[0] == 0
    assert command("convert", "somebody/tiny", tmp_path / "llama", "--stock-llama")[0] == 0
    assert (tmp_path / "m.gguf").is_file() and (tmp_path / "llama" / "model.safetensors").is_file()


def test_an_unknown_name_is_one_line(command, hub):
    status, _, errors = command("generate", "somebody/else", "--prompt", "x")
    assert status == 2
    assert errors == (
        "error: somebody/else: no such folder here, nor to be had from the Hub: no somebody/else\n"
    )
