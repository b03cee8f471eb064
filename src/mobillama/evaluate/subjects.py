"""What can be measured: a device file, a checkpoint, a run, a model folder, or a model on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError
from mobillama.core.hashing import blake3_file, canonical_json, sha256_text
from mobillama.core.records import MANIFEST, manifest_hash, read_manifest
from mobillama.core.tensors import model_files

from .harness_model import Encoder, SharedPrefixLM
from .questions import Cut

GGUF = ".gguf"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which model is measured.

    Attributes:
        identity: names these very weights.
        facts: what the result records of it.
    """

    name: str
    identity: str
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Subject(Identity):
    """A model under measurement by lm-eval's tasks."""

    lm: SharedPrefixLM
    tokenizer_identity: str


def open_subject(
    model: str, *, device: str | None = None, dtype: str = "auto", cut: Cut = "question"
) -> Subject:
    """Return the model that `model` means, ready to be measured.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    if model.endswith(GGUF):
        return open_device_file(Path(model), cut)
    return open_torch(model, device=device, dtype=dtype, cut=cut)


def open_device_file(path: Path, cut: Cut) -> Subject:
    """Return a `.gguf` in our engine."""
    from mobillama import engine

    from .session_scorer import SessionScorer

    model = engine.load(path)
    tokenizer = model.tokenizer
    prefix = (
        tokenizer.begin_token if tokenizer.begin_token is not None else min(tokenizer.end_tokens, default=0)
    )
    lm = SharedPrefixLM(
        SessionScorer(model.session()),
        fast_encoder(tokenizer.encode),
        prefix_token=prefix,
        prefix_text=tokenizer.backend.id_to_token(prefix) or "",
        writer=lambda: model,
        cut=cut,
    )
    return Subject(
        name=path.stem,
        identity=model.identity,
        lm=lm,
        tokenizer_identity=sha256_text(tokenizer.definition),
        facts=device_file_facts(path, model.metadata),
    )


def device_file_facts(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return what a result records of a `.gguf`."""
    facts = {key: value for key, value in metadata.items() if key.startswith("mobillama.provenance.")}
    return facts | {"file": path.name, "size_bytes": path.stat().st_size, "backend": "engine"}


def fast_encoder(encode: Callable[..., list[int]]) -> Encoder:
    """Return an encoder of many texts from one of single texts."""

    def encode_many(texts: Sequence[str], *, special: bool) -> list[list[int]]:
        return [encode(text, special=special) for text in texts]

    return encode_many


def open_torch(model: str, *, device: str | None, dtype: str, cut: Cut) -> Subject:
    """Return a checkpoint, a run's last checkpoint, a model folder, or a model of the Hub, in torch."""
    from transformers import AutoTokenizer

    from mobillama.core.errors import require_extra
    from mobillama.model import checkpoint, loading

    from .torch_scorer import TorchScorer

    require_extra("train", "torch", "transformers")
    source = checkpoint.locate(model)
    loaded = loading.load_language_model(source, device=device, dtype=dtype)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source}: no usable tokenizer ({error}); put its files beside the weights"
        ) from None
    embedding: Any = loaded.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(f"{source}: the tokenizer has {len(tokenizer)} tokens, the embedding {rows} rows")

    def encode(texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        return tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]

    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise UserError(
            f"{source}: the tokenizer names neither bos_token nor eos_token; one must begin a text"
        )
    lm = SharedPrefixLM(
        TorchScorer(loaded),
        encode,
        prefix_token=prefix,
        prefix_text=tokenizer.decode([prefix]),
        writer=lambda: torch_writer(loaded, source),
        cut=cut,
    )
    return Subject(
        name=name_of(model, source),
        identity=model_identity(source),
        lm=lm,
        tokenizer_identity=sha256_text(canonical_json(tokenizer.get_vocab())),
        facts=torch_facts(loaded, source),
    )


def torch_facts(loaded: Any, source: Path) -> dict[str, Any]:
    """Return what a result records of a model in torch."""
    return {
        "backend": "torch",
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "parameters": loaded.num_parameters(),
        "step": step_of(source),
    }


def torch_writer(model: Any, source: Path) -> Any:
    """Return the loaded model as one that writes text."""
    from mobillama.engine import LanguageModel, read_tokenizer
    from mobillama.model import TorchSession

    return LanguageModel(
        name=source.name, tokenizer=read_tokenizer(source), open_session=lambda: TorchSession(model)
    )


def name_of(model: str, source: Path) -> str:
    """Return what to call a model: for a run's checkpoint, both."""
    if source.parent.name == "checkpoints":
        return f"{source.parent.parent.name}/{source.name}"
    return model if not Path(model).exists() else source.resolve().name


def step_of(source: Path) -> int | None:
    """Return the training step a checkpoint's manifest names, or None."""
    if not (source / MANIFEST).is_file():
        return None
    return read_manifest(source).get("step")


def model_identity(source: Path) -> str:
    """Return the hash of a checkpoint's manifest, or of the weight files of a folder without one."""
    if (source / MANIFEST).is_file():
        return manifest_hash(source)
    files = [file.path for file in model_files(source)] if list(source.glob("*.safetensors")) else []
    files = files or sorted(source.glob("*.bin"))
    return sha256_text(canonical_json([blake3_file(path) for path in files]))


def checkpoints_of(run: str) -> list[Path]:
    """Return every checkpoint of a run, first step first.

    Raises:
        UserError: there is none.
    """
    from mobillama.model.checkpoint import CHECKPOINTS, STEP_DIRECTORY

    found = {
        int(match.group(1)): path
        for path in (Path(run) / CHECKPOINTS).glob("step-*")
        if (match := STEP_DIRECTORY.fullmatch(path.name)) and (path / "config.json").is_file()
    }
    if not found:
        raise UserError(f"{run}: no {CHECKPOINTS}/step-* here; --all-checkpoints needs a run")
    return [found[step] for step in sorted(found)]
