"""One image on this machine: a device file (engine and onnxruntime) against the same model in torch.

    python benchmarks/vision.py CHECKPOINT DEVICE_FILE IMAGE [--threads 2] [--pairs 5] [--json FILE]
    python benchmarks/vision.py --new FOLDER --tokenizer FOLDER [--preset mobillama-0.5b] [--shuffle 1]

The second writes a model of the paper's shape, CLIP-L/14 at 336 pixels before MobiLlama, with random weights:
how long it takes does not depend on what it has learnt. ``mobillama quantize`` makes its device file.

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


def write_new(folder: Path, tokenizer: Path, preset: str, shuffle: int) -> None:
    """Write a checkpoint of the paper's shape with random weights and a tokenizer from elsewhere."""
    from tokenizers import Tokenizer
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from mobillama.core.records import write_manifest
    from mobillama.data.vocabulary import write_tokenizer
    from mobillama.model import MobiLlamaForCausalLM
    from mobillama.model.recipe import ModelSection
    from mobillama.vision.building import composed
    from mobillama.vision.conversation import MARKER, TEMPLATES, with_image_token
    from mobillama.vision.images import ImageRules
    from mobillama.vision.recipe import VisionSection

    words = with_image_token(Tokenizer.from_file(str(tokenizer / "tokenizer.json")))
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    end = words.token_to_id(settings["eos_token"])
    text = ModelSection(preset=preset).config(words.get_vocab_size(), bos_token_id=end, eos_token_id=end)
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
            image_size=336, patch_size=14,
        )
    )  # fmt: skip
    model = composed(
        VisionSection(shuffle=shuffle), tower, MobiLlamaForCausalLM(text), words.token_to_id(MARKER)
    )
    model.save_pretrained(folder)
    write_tokenizer(words, settings["eos_token"], folder)
    settings["chat_template"] = TEMPLATES["vicuna"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ImageRules(image_size=336, tokens=(24 // shuffle) ** 2, fit="pad").write(folder)
    write_manifest(folder, "checkpoint", step=0, run="random", corpus="", parent=None)


def main() -> None:
    """Measure both sides in turns and print medians and ratios, or write a model to measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", help="CHECKPOINT, DEVICE_FILE and IMAGE")
    parser.add_argument("--new", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--preset", default="mobillama-0.5b")
    parser.add_argument("--shuffle", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.new is not None:
        write_new(chosen.new, chosen.tokenizer, chosen.preset, chosen.shuffle)
        return
    *models, image = chosen.models
    if chosen.worker:
        print(json.dumps(measure(models[0], Path(image), chosen.threads)))
        return
    found: dict[str, list[dict[str, float]]] = {model: [] for model in models}
    for _ in range(chosen.pairs):
        for model, figures in found.items():
            command = [sys.executable, __file__, "--worker", model, image]
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
