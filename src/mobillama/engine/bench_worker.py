"""One engine in a process of its own, measured by command: a JSON line in, a JSON line out.

A fresh process is what makes load time and peak memory mean something, and two of them, idle
while the other works, are what makes an interleaved comparison fair.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .session import as_tokens

# Any text will do for speed; these ids exist in every vocabulary above 256.
FIRST_TOKEN, TOKEN_RANGE = 3, 250


class Engine(Protocol):
    """What a worker measures."""

    def fill(self, count: int) -> int:
        """Hold exactly ``count`` tokens, computed anew; return the likeliest next token."""
        ...

    def rewind(self, count: int) -> bool:
        """Go back to ``count`` tokens if so many are held; return whether they are."""
        ...

    def step(self, token: int) -> int:
        """Append one token and return the likeliest next one."""
        ...


class OwnEngine:
    """The engine of this package."""

    def __init__(self, path: Path, threads: int, context: int, options: dict[str, Any]):
        from . import native

        self._model = native.Model(path, threads=threads, context=context, kv_type=options["kv_type"])
        self._session = self._model.session()

    def fill(self, count: int) -> int:
        self._session.reset()
        return int(self._session.forward(prompt(count)).argmax())

    def rewind(self, count: int) -> bool:
        if self._session.position < count:
            return False
        self._session.truncate(count)
        return True

    def step(self, token: int) -> int:
        return int(self._session.forward(as_tokens([token])).argmax())


class LlamaCpp:
    """Stock llama.cpp through llama-cpp-python, its cache in f16."""

    def __init__(self, path: Path, threads: int, context: int, options: dict[str, Any]):
        import llama_cpp

        self._llama: Any = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=512,
            n_ubatch=512,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=options["flash_attention"],
            verbose=False,
        )

    def _likeliest(self) -> int:
        # The row that eval filled last; reading it in place costs nothing.
        return int(np.ctypeslib.as_array(self._llama._ctx.get_logits(), (self._llama.n_vocab(),)).argmax())

    def fill(self, count: int) -> int:
        self._llama.reset()
        self._llama.eval(prompt(count).tolist())
        return self._likeliest()

    def rewind(self, count: int) -> bool:
        if self._llama.n_tokens < count:
            return False
        self._llama.n_tokens = count  # eval removes what lies beyond before it appends
        return True

    def step(self, token: int) -> int:
        self._llama.eval([token])
        return self._likeliest()


ENGINES: dict[str, type[OwnEngine] | type[LlamaCpp]] = {"mobillama": OwnEngine, "llama.cpp": LlamaCpp}


def prompt(count: int) -> Any:
    """Return ``count`` token ids without a pattern."""
    ids = np.random.default_rng(0).integers(FIRST_TOKEN, FIRST_TOKEN + TOKEN_RANGE, count)
    return ids.astype(np.int32)


def prefill(engine: Engine, tokens: int) -> dict[str, Any]:
    """Time the reading of a prompt."""
    started_at = time.perf_counter()
    engine.fill(tokens)
    return {"elapsed_s": time.perf_counter() - started_at}


def decode(engine: Engine, depth: int, tokens: int) -> dict[str, Any]:
    """Time single tokens after ``depth`` others."""
    if not engine.rewind(depth):
        engine.fill(depth)
    token = FIRST_TOKEN
    started_at = time.perf_counter()
    for _ in range(tokens):
        token = engine.step(token)
    return {"elapsed_s": time.perf_counter() - started_at}


def main() -> None:
    """Open the engine that the first argument describes, then answer commands until standard input ends."""
    described = json.loads(sys.argv[1])
    answer(ready=True)  # imports are done: what follows is the engine's own time and memory
    sys.stdin.readline()
    started_at = time.perf_counter()
    engine = ENGINES[described["engine"]](
        Path(described["path"]), described["threads"], described["context"], described["options"]
    )
    loaded_s = time.perf_counter() - started_at
    engine.fill(described["first_prompt_tokens"])
    answer(load_s=loaded_s, first_token_s=time.perf_counter() - started_at)
    commands: dict[str, Callable[..., dict[str, Any]]] = {"prefill": prefill, "decode": decode}
    for line in sys.stdin:
        command = json.loads(line)
        answer(**commands[command.pop("do")](engine, **command))


def answer(**values: Any) -> None:
    """Write one line."""
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
