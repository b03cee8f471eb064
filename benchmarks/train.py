"""Training speed: our loop against transformers' ``Trainer``, same model, samples, optimizer and precision.

    python benchmarks/train.py [--recipe recipes/amber-mini.toml] [--set k=v]... [--pairs 5] [--steps 12]

The recipe's corpus must be prepared. Both sides train the recipe's model with AdamW in bf16, one
micro-batch a step, each in a process of its own and taking turns; the first steps are not counted. The
ratio of each pair and the median are printed, of tokens per second by the clock and by CPU time (the one
to read where other work runs).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNCOUNTED_STEPS = 3
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1


class Clock:
    """Notes wall and CPU time at each step's end."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, float]] = []

    def tick(self) -> None:
        """Note the end of a step."""
        self.moments.append((time.monotonic(), time.process_time()))

    def tokens_per_second(self, tokens_per_step: int) -> dict[str, float]:
        """Return the rate over the counted steps, by each clock."""
        first, last = self.moments[UNCOUNTED_STEPS - 1], self.moments[-1]
        tokens = tokens_per_step * (len(self.moments) - UNCOUNTED_STEPS)
        return {"wall": tokens / (last[0] - first[0]), "cpu": tokens / (last[1] - first[1])}


def ours(recipe: Any, steps: int, tick: Callable[[], None]) -> None:
    """Train with our loop."""
    from mobillama.train import host_memory, loop, parallel, state
    from mobillama.train.training import plan_of
    from mobillama.train.work import TextWork

    host_memory.keep_freed_memory()  # as ``train`` does
    work = TextWork(recipe)
    new = state.build(recipe, work.model, work.rates, parallel.World())
    batches = work.batches(new.world)

    def after_step(_: loop.Step) -> bool:
        tick()
        return False

    objective = work.objective(new.model)
    loop.run(new, plan_of(recipe, steps), objective, batches, until=steps, after_step=after_step)


def trainer(recipe: Any, steps: int, tick: Callable[[], None]) -> None:
    """Train with transformers' Trainer."""
    import torch
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from mobillama.data import Corpus, Samples
    from mobillama.model import MobiLlamaForCausalLM

    corpus = Corpus(recipe.corpus.directory)
    samples = Samples(corpus, recipe.data, recipe.seed)

    class Texts(Dataset):
        def __len__(self) -> int:
            return samples.samples_per_epoch

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            tokens = torch.from_numpy(samples.fetch([index])["input_ids"][0])
            return {"input_ids": tokens, "labels": tokens}

    class Tick(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            tick()

    torch.manual_seed(recipe.seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=recipe.train.micro_batch,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            bf16=True,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        model = MobiLlamaForCausalLM(recipe.model.config(corpus.vocab_size))
        Trainer(model, arguments, train_dataset=Texts(), callbacks=[Tick()]).train()


def measure(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the rates of one side, measured in this process."""
    import torch

    from mobillama.core import config
    from mobillama.train.recipe import Recipe

    torch.set_num_threads(options.threads)
    fixed = [
        "train.optimizer.kind=adamw",
        f"train.optimizer.lr={LEARNING_RATE}",
        f"train.optimizer.weight_decay={WEIGHT_DECAY}",
        "train.precision=bf16",
        "train.schedule.batch_ramp_steps=0",
    ]
    recipe = config.load(options.recipe, Recipe, [*options.overrides, *fixed]).recipe
    tokens = recipe.train.micro_batch * recipe.data.sequence_length
    fixed.append(f"train.batch_tokens={tokens}")
    recipe = config.load(options.recipe, Recipe, [*options.overrides, *fixed]).recipe
    clock = Clock()
    {"ours": ours, "trainer": trainer}[side](recipe, options.steps, clock.tick)
    return clock.tokens_per_second(tokens)


def measured_apart(side: str) -> dict[str, float]:
    """Return the rates of one side, measured in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, default=Path("recipes/amber-mini.toml"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=("ours", "trainer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options)))
        return
    ratios: dict[str, list[float]] = {"wall": [], "cpu": []}
    for number in range(options.pairs):
        order = ("ours", "trainer") if number % 2 else ("trainer", "ours")
        rates = {side: measured_apart(side) for side in order}
        for clock, found in ratios.items():
            found.append(rates["ours"][clock] / rates["trainer"][clock])
        print(
            f"pair {number + 1}: {rates['ours']['wall']:,.0f} and {rates['trainer']['wall']:,.0f} tokens/s"
            f" by the clock: {ratios['wall'][-1]:.2f} times; by CPU time {ratios['cpu'][-1]:.2f} times",
            flush=True,
        )
    for clock, found in ratios.items():
        print(f"median by {clock} time: {statistics.median(found):.2f} times Trainer's tokens per second")


if __name__ == "__main__":
    main()
