"""The chain of verbs as processes, to be disturbed: what each writes, and what must be equal in the end."""

import hashlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import toy_run

from mobillama.core.records import check_files

LONGEST_S = 600


@dataclass(frozen=True)
class Verb:
    """A command, what it writes (its first output tells that work has begun), and what must be equal."""

    name: str
    command: list[str]
    outputs: list[Path]
    pattern: str

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(self.command, capture_output=True, text=True, env=toy_run.environment())

    def start(self) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own and wait until it writes."""
        process = subprocess.Popen(
            self.command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=toy_run.environment(),
            start_new_session=True,
        )
        deadline = time.monotonic() + LONGEST_S
        while not any(self.traces()) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return process

    def traces(self) -> list[Path]:
        """Return everything of it that is on disk, the hidden places of work in progress included."""
        hidden = [path for out in self.outputs for path in out.parent.glob(f".{out.name}*")]
        return [out for out in self.outputs if out.exists()] + hidden

    def clear(self) -> None:
        """Remove all of it."""
        for path in self.traces():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def bytes(self) -> dict[str, str]:
        """Return the SHA-256 of what must be equal, by path."""
        found: list[Path] = []
        for out in self.outputs:
            found += sorted(out.glob(self.pattern)) if out.is_dir() else [out]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found if path.is_file()}


def chain(folder: Path) -> list[Verb]:
    """Return the verbs from documents to a device file, and the index; each needs those before it."""
    recipe = toy_run.write_toy(folder)
    corpus, run, device_file = folder / "corpus", folder / "run", folder / "small.gguf"
    mobillama = [sys.executable, "-m", "mobillama"]
    quantize = [*mobillama, "quantize", str(run), "--out", str(device_file), "--type", "q8_0"]
    find = [*mobillama, "find", str(run), "--text", "the model"]
    return [
        Verb("prepare", toy_run.command("prepare", recipe), [corpus], "**/*"),
        Verb("train", toy_run.command("train", recipe), [run], "*s/step-*/*.safetensors"),
        Verb("quantize", quantize, [device_file, Path(f"{device_file}.manifest.json")], ""),
        Verb("index", find, [folder / "corpus.index"], "**/*.*s*"),
    ]


def nothing_half_written_is_taken_for_whole(verb: Verb, undisturbed: dict[str, str]) -> None:
    """What has its own name and a manifest is whole, and so is every single file, by its bytes."""
    for out in verb.outputs:
        for manifest in out.rglob("manifest.json"):
            if not any(part.startswith(".") for part in manifest.relative_to(out).parts):
                assert check_files(manifest.parent) == []
        if out.is_file():
            assert hashlib.sha256(out.read_bytes()).hexdigest() == undisturbed[str(out)]
