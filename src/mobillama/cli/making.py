"""Verbs that make a model: ``quickstart``, ``prepare``, ``train``, ``quantize``."""

from pathlib import Path
from typing import Annotated

import typer

from mobillama.core.errors import require_extra

Recipe = Annotated[Path, typer.Argument(help="A recipe, such as recipes/amber-mini.toml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe.")
]


def register(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    app.command()(quickstart)
    app.command()(prepare)
    app.command()(train)
    app.command()(quantize)


def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/quickstart"),
    overrides: Overrides = None,
) -> None:
    """Make a whole small model on this machine in minutes, from documents to a 4-bit file that speaks."""
    require_extra("train", "torch", "transformers", "datatrove")
    from .quickstart import run

    run(out, overrides or [])


def prepare(recipe: Recipe, overrides: Overrides = None) -> None:
    """Turn documents into a tokenizer and token shards, or images and conversations into an image set."""
    require_extra("train", "datatrove", "pyarrow")
    from mobillama.lineage import kinds

    directory = kinds.prepare(kinds.load(recipe, overrides).recipe)
    typer.echo(f"prepared: {directory}\nnext: mobillama train {recipe}")


def train(
    recipe: Recipe,
    objective: Annotated[
        str | None, typer.Option(help="next-token, or distill from the recipe's distill.teacher.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train a model, or go on where it stopped."""
    require_extra("train", "torch", "transformers")
    from mobillama.lineage import kinds
    from mobillama.train import train as train_model

    chosen = [f"train.objective={objective}"] if objective else []
    loaded = kinds.load(recipe, [*(overrides or []), *chosen])
    run = train_model(loaded, kinds.work_of(loaded.recipe))
    typer.echo(f"run: {run}\nnext: mobillama report {run}")


def quantize(
    model: Annotated[Path, typer.Argument(help="A checkpoint, or a run (its last checkpoint).")],
    out: Annotated[Path, typer.Option(help="The .gguf file to write.")],
    type: Annotated[str, typer.Option(help="q4_0, q8_0, f16 or mixed.")] = "mixed",
    calibrate: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="Text to weigh the rounding by.")
    ] = None,
    stock_llama: Annotated[
        bool, typer.Option(help="Write the FFN once a layer, for stock llama.cpp.")
    ] = False,
) -> None:
    """Write one device file with every shared FFN stored once, and for a model that sees its vision half."""
    require_extra("train", "torch", "gguf")
    from mobillama.export import quantize as quantize_model
    from mobillama.model.checkpoint import locate
    from mobillama.model.loading import sees

    directory = locate(model)
    seeing = sees(directory) and not stock_llama
    if seeing:
        require_extra("onnx", "onnx", "onnxscript", "onnxruntime")
    typer.echo(quantize_model(directory, out, type=type, calibrate=calibrate, stock_llama=stock_llama))
    if seeing:
        from mobillama.vision.onnx_export import write_vision_half
        from mobillama.vision.onnx_eye import vision_half

        typer.echo(write_vision_half(directory, vision_half(out), int8=type != "f16"))
