import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixture_checkpoint import write_checkpoint

from mobillama import cli
from mobillama.cli import speaking
from mobillama.export import quantize

pytest.importorskip("mobillama.engine._native", reason="the native engine is not built here")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A run with one checkpoint, and its device file."""
    folder = tmp_path_factory.mktemp("models")
    write_checkpoint(folder / "run" / "checkpoints" / "step-00000007")
    quantize(folder / "run", folder / "m.gguf", type="f16")
    return folder


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Done]:
    """Run a command line in this process, which has torch loaded already."""

    def run_here(*arguments: object, given: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["mobillama", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run_here


def test_device_file_and_run_continue_a_text_alike(run, models):
    rest = ("--prompt", "import json", "--max-tokens", "12", "--temperature", "0")
    from_file = run("generate", models / "m.gguf", *rest, "--kv-type", "f16")
    from_run = run("generate", models / "run", *rest)
    assert from_file.returncode == from_run.returncode == 0, from_file.stderr + from_run.stderr
    assert from_file.stdout == from_run.stdout != "\n"


def test_a_seed_repeats_an_answer_and_a_pattern_shapes_it(run, models):
    rest = ("--prompt", "-", "--seed", "5", "--regex", "[a-c]{8}")
    answers = [run("generate", models / "m.gguf", *rest, given="hello").stdout for _ in range(2)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 9 and set(answers[0]) <= set("abc\n")


def test_logprobs_come_as_json_lines(run, models):
    done = run("generate", models / "m.gguf", "--prompt", "x", "--max-tokens", "3", "--logprobs", "2")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(line["top"]) for line in lines] == [2, 2, 2]
    assert all(line["logprob"] <= line["top"][0]["logprob"] <= 0 for line in lines)
    assert [line["finish"] for line in lines] == [None, None, "length"]


def test_a_prompt_cache_on_disk_changes_nothing_but_the_time(run, models, tmp_path):
    rest = (
        "--prompt",
        "import json\n" * 9,
        "--max-tokens",
        "9",
        "--temperature",
        "0",
        "--prompt-cache",
        tmp_path / "p",
    )
    answers = [run("generate", models / "m.gguf", *rest) for _ in range(2)]
    assert answers[0].stdout == answers[1].stdout != ""
    assert (tmp_path / "p" / "session.kv").is_file()


def test_a_dialogue_through_pipes_ends_with_its_input(run, models):
    done = run("chat", models / "m.gguf", "--max-tokens", "5", "--seed", "1", given="hello\n/new\nagain\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n5 tokens, first after") == 2
    assert "no chat template" in done.stdout


def test_ctrl_c_stops_the_answer_and_not_the_program(models):
    terminal, inside = pty.openpty()
    # An answer without end that cannot be mistaken for the echo of the question.
    endless = ["chat", str(models / "m.gguf"), "--context-shift", "--regex", "[~#]{100000}"]
    with subprocess.Popen(
        [sys.executable, "-m", "mobillama", *endless],
        stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    ) as chat:  # fmt: skip
        os.close(inside)
        read_until(terminal, b"> ")
        os.write(terminal, b"hello\n")
        read_until(terminal, b"#")
        chat.send_signal(signal.SIGINT)
        read_until(terminal, b"stopped")
        read_until(terminal, b"> ")
        os.write(terminal, b"/exit\n")
        assert chat.wait(timeout=30) == 0


def read_until(terminal: int, expected: bytes) -> None:
    """Read no further than ``expected``: what follows is for the next call."""
    text = b""
    while not text.endswith(expected):
        text += os.read(terminal, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "absent.gguf", "--prompt", "x"], "absent.gguf"),
        (["generate", "absent", "--prompt", "x"], "absent"),
        (["generate", "m.gguf", "--prompt", "x", "--top-p", "2"], "top_p"),
        (["generate", "m.gguf", "--prompt", ""], "prompt is empty"),
        (["generate", "m.gguf", "--prompt", "x", "--speculate"], "temperature"),
        (["generate", "m.gguf", "--prompt", "x", "--regex", "a", "--json-schema", "{}"], "exclude"),
        (["bench", "run"], "quantize"),
        (["bench", "m.gguf", "--compare", "vllm"], "llama.cpp"),
    ],
)
def test_mistakes_are_one_line_and_status_2(run, models, arguments, says):
    given = [str(models / word) if word in ("m.gguf", "run") else word for word in arguments]
    done = run(*given)
    assert done.returncode == 2
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_control_characters_do_not_reach_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert speaking.shown("a\x1b[2J\tb\n\x07é") == "a�[2J\tb\n�é"


def test_the_verbs_need_no_torch_for_a_device_file(models):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['gguf'] = None\n"
        "from mobillama.cli import main; main()"
    )
    arguments = ["generate", str(models / "m.gguf"), "--prompt", "x", "--max-tokens", "2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
