"""One image on this machine: a device file (engine and onnxruntime) against the same model in torch.

    python benchmarks/vision.py CHECKPOINT DEVICE_FILE IMAGE [--threads 2] [--pairs 5] [--json FILE]

Every measurement is a process of its own, the two sides taking turns: open the model, look at the image,
answer with one token; then once more with another image of the same size, when everything is warm.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from mobillama.core import atomic

QUESTION = "What does this show?"


def measure(model_path: str, image_path: Path, threads: int) -> dict[str, float]:
    """Return seconds from the start of opening, and the peak memory of this process."""
    from PIL import Image, ImageOps

    from mobillama import engine
    from mobillama.vision.images import opened
    from mobillama.vision.opening import open_model

    started_at = time.perf_counter()
    model = open_model(model_path, threads=threads)
    opened_s = time.perf_counter() - started_at
    options = engine.GenerationOptions(max_tokens=1, sampling=engine.GREEDY)
    first = opened(image_path)
    seen = []
    # The mirrored image is new to every cache.
    for image in (first, ImageOps.mirror(first)):
        assert isinstance(image, Image.Image)
        begun_at = time.perf_counter()
        rows = model.look(image)
        looked_s = time.perf_counter() - begun_at
        list(model.chat([{"role": "user", "content": QUESTION, "images": [rows]}], options))
        seen.append((looked_s, time.perf_counter() - begun_at))
    return {
        "image_tokens": len(rows),
        "prompt_tokens": model.cache.position,
        "open_s": opened_s,
        "first_answer_s": opened_s + seen[0][1],
        "look_s": seen[1][0],
        "first_token_s": seen[1][1],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def main() -> None:
    """Measure both sides in turns and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help="CHECKPOINT and DEVICE_FILE; with --worker one of them")
    parser.add_argument("image", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        print(json.dumps(measure(chosen.models[0], chosen.image, chosen.threads)))
        return
    found: dict[str, list[dict[str, float]]] = {model: [] for model in chosen.models}
    for _ in range(chosen.pairs):
        for model, figures in found.items():
            command = [sys.executable, __file__, "--worker", model, str(chosen.image)]
            done = subprocess.run(
                [*command, "--threads", str(chosen.threads)], capture_output=True, text=True, check=True
            )
            figures.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        model: {key: median(each[key] for each in figures) for key in figures[0]}
        for model, figures in found.items()
    }
    torch_side, device_side = medians.values()
    for key, value in torch_side.items():
        other = device_side[key]
        print(f"{key:16} torch {value:10.4f}   device {other:10.4f}   {other / value:6.3f}")
    if chosen.json is not None:
        atomic.write_text(chosen.json, json.dumps({"runs": found, "medians": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
