"""The README tells the truth: every command in it runs, on a quickstart made small."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
SMALL = ("train.max_minutes=0.2", "corpus.tokenizer.vocab_size=1024", "checkpoint.count=8")
# Commands that other tests stand for: the two make targets are how this one came to run, training on
# the real corpora takes twenty minutes (docs/lab-log.md has what it gives), and eight GPUs are not at
# hand (tests/distributed has two processes).
ELSEWHERE = (
    "make ",
    "mobillama prepare recipes/amber-mini",
    "mobillama train recipes/amber-mini",
    "torchrun ",
    "mobillama quantize runs/amber-mini",
)


def commands() -> list[str]:
    """Return the commands of the README's shell blocks, without their comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, flags=re.M | re.S)
    lines = (line.split("  #")[0].rstrip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


RUNNABLE = [line for line in commands() if not line.startswith(ELSEWHERE)]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Return a function that runs a command where a small quickstart has been made."""
    folder = tmp_path_factory.mktemp("readme")
    binaries = folder / "bin"
    binaries.mkdir()
    (binaries / "mobillama").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mobillama "$@"\n')
    (binaries / "mobillama").chmod(0o755)
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, input="Hello\n"
        )

    done = run("mobillama quickstart " + " ".join(f"--set {override}" for override in SMALL))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "report" in done.stdout
    return run


@pytest.mark.parametrize("command", RUNNABLE)
def test_every_command_of_the_readme_runs(shell, command):
    done = shell(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_python_of_the_readme_runs(shell):
    [code] = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
    done = shell("ls -d runs/quickstart/run/checkpoints/step-* | tail -1")
    code = re.sub(r"runs/quickstart/run/checkpoints/step-\d+", done.stdout.strip(), code)
    done = shell(f"{sys.executable} - <<'END'\n{code}\nEND")
    assert done.returncode == 0, done.stderr[-3000:]


def test_links_of_the_readme_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links and all((CHECKOUT / link).exists() for link in links)
