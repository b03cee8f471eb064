"""How long multiple-choice tasks take here and with lm-eval's own Hugging Face model, on the same model.

    python benchmarks/evaluate.py MODEL --data-dir DIR [--limit 24] [--repeats 3]

Both get the same requests; tokenising counts, building prompts does not. Runs are interleaved and the best
of each is compared, batch sizes of lm-eval included. Also says how far the log-likelihoods lie apart where
no question had to be cut.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM

from mobillama.evaluate import subjects, tasks
from mobillama.evaluate.requests import FEWSHOT_SEED

TASKS = (
    "hellaswag",
    "truthfulqa_mc2",
    "mmlu_anatomy",
    "arc_challenge",
    "piqa",
    "race",
    "social_iqa",
    "winogrande",
)
BATCH_SIZES = (1, 8)


def timed(model, requests) -> tuple[float, list[tuple[float, bool]]]:
    """Return the seconds a model takes for requests, and its answers."""
    started_at = time.perf_counter()
    answers = model.loglikelihood(requests, disable_tqdm=True)
    return time.perf_counter() - started_at, answers


def main() -> None:
    """Print one line a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tasks", default=",".join(TASKS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)

    ours = subjects.open_subject(options.model).lm
    theirs = {
        size: HFLM(
            pretrained=options.model, dtype="auto", batch_size=size, device=str(ours.scorer.model.device)
        )
        for size in BATCH_SIZES
    }
    print(f"{'task':16} {'ours':>8} " + " ".join(f"{f'batch {size}':>8}" for size in BATCH_SIZES), end="")
    print(f" {'times':>6} {'cut':>4}  largest difference")
    for name in options.tasks.split(","):
        group = name.partition("_")[0] if name.startswith("mmlu") else name
        task = tasks.load([group], data_dir=options.data_dir).tasks[name]
        task.set_fewshot_seed(FEWSHOT_SEED)
        task.build_all_requests(limit=options.limit)
        best = {"ours": float("inf"), **dict.fromkeys(BATCH_SIZES, float("inf"))}
        for _ in range(options.repeats):
            for key, model in (("ours", ours), *theirs.items()):
                seconds, answers = timed(model, task.instances)
                best[key] = min(best[key], seconds)
                if key == "ours":
                    found, cut = answers, sum(tokens > 0 for tokens in ours.cut_tokens)
        difference = max(abs(a - b) for (a, _), (b, _) in zip(found, answers, strict=True))
        ratio = min(best[size] for size in BATCH_SIZES) / best["ours"]
        print(f"{name:16} " + " ".join(f"{best[key]:8.2f}" for key in best), end="")
        print(f" {ratio:5.2f}x {cut:4}  " + (f"{difference:.1e}" if not cut else "-"), flush=True)


if __name__ == "__main__":
    main()
