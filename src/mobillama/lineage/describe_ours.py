"""Descriptions of what mobillama wrote: runs, corpora, checkpoints, device files, and any later kind."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mobillama.core.errors import UserError
from mobillama.core.hashing import total_bytes
from mobillama.core.making import read_making
from mobillama.core.records import manifest_hash, manifest_path, read_manifest
from mobillama.core.tensors import model_files
from mobillama.report.page import count, duration, figure, size
from mobillama.report.run import Run, corpus_places, flat, read_json, read_run
from mobillama.report.summary import summary

from .describe_files import ffns_text, gguf, model_folder, tensor_facts, values_of
from .inspect import Description

SHOWN_INPUTS = 6
# Known facts of manifests that have a line of their own elsewhere.
ELSEWHERE = {"kind", "format", "files", "digest", "source", "parent", "recipe"}


def run(path: Path) -> Description:
    """Describe a run directory by its records."""
    read = read_run(path)
    facts = summary(read)
    shape = f"{count(facts.parameters)} stored parameters, {ffns_text(facts.layers, facts.ffns)}"
    return Description(
        str(path),
        "run",
        f"{shape}; {facts.steps or 0:,} steps, {count(facts.tokens)} tokens in {duration(facts.elapsed_s)}.",
        total_bytes(path),
        facts={
            "held out": f"{figure(facts.bits_per_byte)} bits per byte ({figure(facts.of_xz, 2)} of xz -9)",
            "loss": figure(facts.loss),
            "checkpoints": f"{facts.checkpoints}, the last at step {read.checkpoints[-1].step:,}"
            if read.checkpoints
            else "none",
            "ledger": f"{len(read.ledger)} entries" + (f", {facts.stopped}" if facts.stopped else ""),
        },
        configuration=flat(read.recipe),
        origins={key: read.origins.get(key.partition("[")[0], "") for key in flat(read.recipe)},
        made_by=made_by(read.environment),
        parents=[*corpus_lines(read), *models_of(read)],
        make_again=f"mobillama train {path / 'run.toml'} --set run_dir=NEW",
    )


def artifact(path: Path) -> Description:
    """Describe an artifact by its manifest; a kind not known here is described by its facts alone."""
    record = read_manifest(path)
    describers: dict[str, Callable[[Path, dict[str, Any]], Description]] = {
        "checkpoint": checkpoint,
        "corpus": corpus,
        "device file": device_file,
        "model": model,
        "publication": model,
    }
    try:
        description = describers.get(record["kind"], other)(path, record)
    except (UserError, ValueError, KeyError, TypeError) as error:
        description = other(path, record)
        description.problems.append(f"{path}: cannot be read as a {record['kind']}: {error}")
    description.facts = {"manifest": manifest_hash(path), **description.facts}
    description.made_by = description.made_by or made_by(
        {"source": record.get("source"), **read_making(path)}
    )
    description.make_again = description.make_again or description.made_by.get("command")
    return description


def checkpoint(path: Path, record: dict[str, Any]) -> Description:
    """Describe a checkpoint: the model in it, and the way back to the documents."""
    config = read_json(path / "config.json")
    weights = model_files(path)
    language = config.get("text_config", config)  # of a model that sees, the half that has layers
    sharing = language.get("ffn_of_layer") or []
    owner = owning_run(path)
    return Description(
        str(path),
        record["kind"],
        f"{config.get('model_type')}, {count(values_of(weights))} stored values, "
        f"{ffns_text(language.get('num_hidden_layers'), len(set(sharing)))}; after step {record['step']:,}.",
        size_of(record),
        facts={
            "tokens seen": count(record.get("tokens_seen")),
            "samples seen": count(record.get("samples_seen")),
            **tensor_facts({name: tensor for file in weights for name, tensor in file.tensors.items()}),
        },
        configuration=config,
        made_by=made_by({**(owner.environment if owner else {}), "source": record.get("source")}),
        parents=list(ancestors(record, owner)),
        make_again=f"mobillama train {owner.path / 'run.toml'} --set run_dir=NEW" if owner else None,
    )


def corpus(path: Path, record: dict[str, Any]) -> Description:
    """Describe a prepared corpus by its counts."""
    subsets: dict[str, Any] = record.get("subsets", {})
    rows = [counts["train"] for counts in subsets.values()]
    documents, tokens = (count(sum(row[key] for row in rows)) for key in ("documents", "tokens"))
    facts = {
        name: f"{counts_text(counts['train'])}; held out {counts_text(counts['heldout'])}; "
        f"dropped {count(sum(counts['dropped'].values()))}, quarantined {count(counts['quarantined'])}"
        for name, counts in subsets.items()
    }
    return Description(
        str(path),
        record["kind"],
        f"{documents} documents and {tokens} tokens to train on, in {len(rows)} subsets.",
        size_of(record),
        facts=facts,
        configuration=flat(record["recipe"]) if isinstance(record.get("recipe"), dict) else {},
        parents=list(input_lines(record)),
    )


def counts_text(counts: dict[str, int]) -> str:
    """Return one split's documents, tokens and bytes."""
    documents, tokens = count(counts["documents"]), count(counts["tokens"])
    return f"{documents} documents, {tokens} tokens, {size(counts['size_bytes'])}"


def device_file(path: Path, record: dict[str, Any]) -> Description:
    """Describe a device file by its GGUF header and its manifest."""
    description = gguf(path)
    description.kind = record["kind"]
    description.facts |= other(path, record).facts
    made_from = record.get("checkpoint")
    for candidate in nearby_checkpoints(path):
        if made_from and manifest_hash(candidate) == made_from:
            origin = checkpoint(candidate, read_manifest(candidate, "checkpoint"))
            description.parents = [f"checkpoint {candidate} ({made_from[:12]})", *origin.parents]
            kind = f" --type {record['type']}" if "type" in record else ""
            description.make_again = f"mobillama quantize {candidate} --out NEW.gguf{kind}"
            break
    else:
        description.parents = [f"checkpoint {made_from[:12]}, not found near it"] if made_from else []
    return description


def model(path: Path, record: dict[str, Any]) -> Description:
    """Describe a converted model or a published run: the model in it, and what it was made from."""
    description, told = model_folder(path), other(path, record)
    description.kind, description.size_bytes = record["kind"], told.size_bytes
    description.facts |= {
        label: value for label, value in told.facts.items() if label not in ("checkpoint", "corpus", "inputs")
    }
    description.parents = told.parents
    return description


def result(path: Path, record: dict[str, Any]) -> Description:
    """Describe a result: what was measured, on what, with which scores; or which items training holds."""
    model, made = record.get("model"), made_by(record.get("environment", {}))
    scores = {name: score_text(task) for name, task in record.get("tasks", {}).items()}
    scores |= {name: score_text(subset) for name, subset in record.get("subsets", {}).items()}
    what = f"{model['name']} on {', '.join(scores)}" if model else f"items of {record.get('benchmark')}"
    scores |= {
        row["file"]: f"{row['contaminated']:,} of {row['items']:,} items in the training data"
        for row in record.get("files", [])
        if row["contaminated"]
    }
    return Description(
        str(path),
        f"result, {record['kind']}",
        f"{what}; finished {record['finished_at']}.",
        path.stat().st_size,
        facts=scores,
        configuration=flat(record.get("settings", {})),
        made_by=made,
        parents=([f"model {model['name']} ({str(model.get('identity'))[:12]})"] if model else [])
        + [f"{key} {str(record[key])[:12]}" for key in ("corpus", "tokenizer") if key in record],
        make_again=made.get("command"),
    )


def score_text(score: dict[str, Any]) -> str:
    """Return what a task or a subset of held-out text was measured at."""
    if "bits_per_byte" in score:
        return f"{figure(score['bits_per_byte'])} bits per byte of {size(score.get('bytes'))}"
    low, high = score.get("interval") or (None, None)
    among = f" [{figure(low)}, {figure(high)}]" if low is not None else ""
    return f"{score.get('metric')} {figure(score.get('value'))}{among}, {score.get('questions')} questions"


def other(path: Path, record: dict[str, Any]) -> Description:
    """Describe an artifact of a kind that has no describer: its recorded facts, one line each."""
    told = {key: value for key, value in record.items() if key not in ELSEWHERE}
    facts = {key: str(value) for key, value in flat(told).items()}
    return Description(
        str(path),
        record["kind"],
        f"{len(record['files'])} files.",
        size_of(record),
        facts=facts,
        parents=[
            *(f"checkpoint {record[key][:12]}" for key in ("parent", "checkpoint") if record.get(key)),
            *([f"corpus {record['corpus'][:12]}"] if record.get("corpus") else []),
            *input_lines(record),
        ],
    )


def owning_run(checkpoint: Path) -> Run | None:
    """Return the run that a checkpoint lies in, if it lies in one."""
    path = checkpoint.resolve().parent.parent
    return read_run(path) if (path / "run.toml").is_file() else None


def ancestors(record: dict[str, Any], owner: Run | None) -> Iterator[str]:
    """Yield the parents of a checkpoint: those before it, the corpus, its inputs, models of other runs."""
    known = {held.sha256: held for held in owner.checkpoints} if owner else {}
    nearest, generations, parent = known.get(record.get("parent") or ""), 0, record.get("parent")
    while parent in known:
        generations, parent = generations + 1, known[parent].manifest.get("parent")
    if nearest:
        origin = f"checkpoint {parent[:12]} of another run" if parent else "a fresh model"
        yield f"checkpoint {nearest.path.name} ({nearest.sha256[:12]}); {generations} back to {origin}"
    elif parent:
        yield f"checkpoint {parent[:12]}, not found beside it"
    else:
        yield "a fresh model"
    if owner and owner.corpus:
        yield from corpus_lines(owner)
    elif record.get("corpus"):
        yield f"corpus {record['corpus'][:12]}, not found on this machine"
    if owner:
        yield from models_of(owner)
    elif record.get("teacher"):
        yield f"teacher {record['teacher'][:12]}"


def models_of(run: Run) -> Iterator[str]:
    """Yield the models that a run was made from, each with its own parents as far as they are here."""
    plan, recipe = read_json(run.path / "plan.json"), run.recipe
    named = {
        "started_from": recipe.get("model", {}).get("start_from"),
        "teacher": recipe.get("distill", {}).get("teacher"),
    }
    for role, folder in named.items():
        if not (sha256 := plan.get(role)):
            continue
        places = [*([Path(folder)] if folder else []), *nearby_checkpoints(run.path)]
        there = (place for place in places if manifest_path(place).is_file())
        place = next((place for place in there if manifest_hash(place) == sha256), None)
        what = role.replace("_", " ")
        if place is None:
            yield f"{what} {sha256[:12]}, not found near it"
            continue
        record = read_manifest(place)
        yield f"{what} {record['kind']} {place} ({sha256[:12]})"
        is_checkpoint = record["kind"] == "checkpoint"
        yield from ancestors(record, owning_run(place)) if is_checkpoint else other(place, record).parents


def corpus_lines(read: Run) -> Iterator[str]:
    """Yield the corpus of a run and the inputs it was prepared from."""
    if read.corpus is None:
        places = ", ".join(str(place) for place in corpus_places(read.path, read.recipe))
        yield f"a corpus that is not on this machine (looked in {places})"
        return
    yield f"corpus {read.corpus.path} ({read.corpus.sha256[:12]})"
    yield from input_lines(read.corpus.manifest)


def input_lines(record: dict[str, Any]) -> Iterator[str]:
    """Yield a corpus's inputs, a line each, and of many the first and their sum."""
    inputs = record.get("inputs", [])
    for entry in inputs[:SHOWN_INPUTS]:
        yield input_line(entry)
    if len(inputs) > SHOWN_INPUTS:
        total = sum(entry.get("size_bytes", 0) for entry in inputs)
        yield f"... {len(inputs):,} files of documents in all, {size(total)}; its manifest names each"


def input_line(entry: dict[str, Any]) -> str:
    """Return one line on an input file of a corpus."""
    identity = str(entry.get("sha256"))[:12]
    return f"documents {entry.get('path')} ({size(entry.get('size_bytes'))}, sha256 {identity})"


def nearby_checkpoints(path: Path) -> Iterator[Path]:
    """Yield the checkpoints in the folder of a file, in the runs beside it, and in the runs it lies in."""
    for base in (path.resolve().parent, path.resolve().parent.parent):
        for pattern in ("checkpoints/step-*", "*/checkpoints/step-*"):
            for found in sorted(base.glob(pattern), reverse=True):
                try:
                    read_manifest(found, "checkpoint")
                except UserError:
                    continue
                yield found


def made_by(environment: dict[str, Any]) -> dict[str, str]:
    """Return what made an artifact: commit, command, versions, machine."""
    facts, source = {}, environment.get("source") or {}
    if source.get("commit"):
        changed = "with uncommitted changes" if source.get("dirty") else "clean"
        facts["source"] = f"commit {source['commit'][:12]}, {changed}"
    if command := environment.get("command"):
        program = "mobillama" if command[0] == "__main__.py" else command[0]  # python -m mobillama
        facts["command"] = " ".join([program, *command[1:]])
    if packages := environment.get("packages"):
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in packages.items())
    if environment.get("platform"):
        facts["machine"] = f"{environment.get('processor')}, {environment['platform']}"
    return facts


def size_of(record: dict[str, Any]) -> int:
    """Return the bytes of an artifact's files as recorded."""
    return sum(entry["size_bytes"] for entry in record["files"])
