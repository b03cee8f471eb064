"""One engine in a process of its own, measured by command: a JSON line in, a JSON line out.

A fresh process is what makes load time and peak memory mean something, and two of them, idle
while the other works, are what makes an interleaved comparison fair.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .session import as_tokens

# Any text will do for speed; these ids exist in every vocabulary above 256.
FIRST_TOKEN, TOKEN_RANGE = 3, 250
BATCH_TOKENS = 512


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
    """Stock llama.cpp with its cache in f16, by its C API: no Python of its wrapper counts against it."""

    def __init__(self, path: Path, threads: int, context: int, options: dict[str, Any]):
        self._api: Any = import_module("llama_cpp")  # an extra that a type checker may not find
        self._llama: Any = self._api.Llama(
            str(path),
            n_ctx=context,
            n_batch=BATCH_TOKENS,
            n_ubatch=BATCH_TOKENS,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=options["flash_attention"],
            verbose=False,
        )
        self._held = 0

    def _forward(self, tokens: list[int]) -> int:
        for start in range(0, len(tokens), BATCH_TOKENS):
            piece = tokens[start : start + BATCH_TOKENS]
            ids = (self._api.llama_token * len(piece))(*piece)
            if self._api.llama_decode(self._llama.ctx, self._api.llama_batch_get_one(ids, len(piece))):
                raise RuntimeError(f"llama_decode refused {len(piece)} tokens after {self._held}")
            self._held += len(piece)
        logits = self._api.llama_get_logits_ith(self._llama.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self._llama.n_vocab(),)).argmax())

    def fill(self, count: int) -> int:
        self.rewind(0)
        return self._forward(prompt(count).tolist())

    def rewind(self, count: int) -> bool:
        if self._held < count:
            return False
        self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._llama.ctx), -1, count, -1)
        self._held = count
        return True

    def step(self, token: int) -> int:
        return self._forward([token])


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
