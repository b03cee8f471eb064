"""Verbs that use a model: ``generate``, ``chat``, ``bench``."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A .gguf file, checkpoint, run, model folder or Hub name.")]
Threads = Annotated[int | None, typer.Option(help="Threads that compute; all cores if not given.")]
KvType = Annotated[str, typer.Option(help="How a .gguf model's keys and values are cached: q8_0 or f16.")]
MaxTokens = Annotated[int | None, typer.Option(help="End after so many tokens.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token; higher is more varied.")]
TopK = Annotated[int, typer.Option(help="Keep so many of the likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens up to this sum of probabilities.")]
MinP = Annotated[float, typer.Option(help="Drop tokens less likely than this times the likeliest.")]
Repetition = Annotated[float, typer.Option(help="Make tokens that occurred already less likely; 1 is off.")]
Presence = Annotated[float, typer.Option(help="Subtract this from tokens that occur in the answer.")]
Seed = Annotated[int | None, typer.Option(help="Repeat a draw.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")]
Schema = Annotated[
    str | None, typer.Option("--json-schema", help="JSON schema the answer must match: a file or its text.")
]
Regex = Annotated[str | None, typer.Option(help="Regular expression the whole answer must match.")]
Shift = Annotated[
    bool, typer.Option("--context-shift", help="When the context is full, drop its older half and go on.")
]
Speculate = Annotated[
    bool, typer.Option("--speculate", help="Guess repetitions; same text as without, at temperature 0.")
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", help="Show this image with the question; may be given several times."),
]
PromptCache = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Keep the computed prompt here, and begin from it.")
]


def register(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    app.command()(generate)
    app.command()(chat)
    app.command()(bench)


def generate(
    model: Model,
    prompt: Annotated[
        str, typer.Option(help="The text to continue, or what to ask about an image; - reads standard input.")
    ],
    image: Images = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: Repetition = 1.0,
    presence_penalty: Presence = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    json_schema: Schema = None,
    regex: Regex = None,
    logprobs: Annotated[
        int | None, typer.Option(help="Write each token with so many alternatives, as JSON lines.")
    ] = None,
    context_shift: Shift = False,
    speculate: Speculate = False,
    threads: Threads = None,
    kv_type: KvType = "q8_0",
    prompt_cache: PromptCache = None,
) -> None:
    """Continue a text, or answer a question about images."""
    from mobillama.vision.opening import open_model

    from . import speaking

    options = speaking.options(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, seed=seed, stop=stop,
        json_schema=json_schema, regex=regex, logprobs=logprobs, context_shift=context_shift,
        speculate=speculate,
    )  # fmt: skip
    opened = open_model(model, threads=threads, kv_type=kv_type)
    speaking.generate(opened, prompt, options, prompt_cache, image or [])


def chat(
    model: Model,
    system: Annotated[
        str | None, typer.Option(help="What the model is told before the conversation.")
    ] = None,
    image: Images = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: Repetition = 1.0,
    presence_penalty: Presence = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    json_schema: Schema = None,
    regex: Regex = None,
    context_shift: Shift = False,
    speculate: Speculate = False,
    threads: Threads = None,
    kv_type: KvType = "q8_0",
) -> None:
    """Talk with a model. Ctrl-C stops its answer, Ctrl-D ends the conversation."""
    from mobillama.vision.opening import open_model

    from . import speaking, talking

    options = speaking.options(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, seed=seed, stop=stop,
        json_schema=json_schema, regex=regex, logprobs=None, context_shift=context_shift,
        speculate=speculate,
    )  # fmt: skip
    opened = open_model(model, threads=threads, kv_type=kv_type)
    talking.converse(opened, options, system, image or [])


def bench(
    model: Annotated[Path, typer.Argument(help="A .gguf file.")],
    compare: Annotated[
        str | None, typer.Option(help="Also measure this engine on the same weights: llama.cpp.")
    ] = None,
    stock: Annotated[
        Path | None, typer.Option(help="The stock-Llama export for --compare; made from MODEL if not given.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Thread counts; 1, 2, 4 ... up to all cores if not given.")
    ] = None,
    depth: Annotated[
        list[int] | None, typer.Option(help="Context depths to decode at; may be given several times.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Interleaved repetitions of every measurement.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    kv_type: KvType = "q8_0",
) -> None:
    """Measure a device file on this machine: speed, start, memory, size, energy."""
    from . import benching

    settings = benching.settings_for(model, threads, depth, pairs)
    benching.run(model, settings, kv_type=kv_type, compare=compare, stock=stock, json_file=json_file)
