"""Model card, data card and transparency table, written from a run's records: no number is typed by hand."""

from collections import Counter
from pathlib import Path

from mobillama.core import atomic
from mobillama.core.making import read_making
from mobillama.report.benchmarks import last_scores, results_of
from mobillama.report.page import count, duration, template
from mobillama.report.run import Corpus, Run, flat, intact_run
from mobillama.report.summary import dropped_counts, heldout_rows, mixture, summary

from .describe_files import ffns_text
from .describe_ours import made_by
from .transparency import indicators, source_text

CARDS = {
    "README.md": "model_card.md.j2",
    "DATA_CARD.md": "data_card.md.j2",
    "TRANSPARENCY.md": "transparency.md.j2",
}
ARCHITECTURE = (
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "ffn_of_layer",
    "num_attention_heads", "num_key_value_heads", "vocab_size", "max_position_embeddings",
    "rope_theta", "rms_norm_eps", "tie_word_embeddings", "dtype",
)  # fmt: skip
SHOWN_INPUTS = 100


def write(
    run: Path, out: Path | None = None, *, repo: str | None = None, license: str | None = None
) -> list[Path]:
    """Write the three cards of a run and return their paths.

    Arguments:
        out: the folder; by default ``cards`` in the run.
        repo: the name under which the model will be published, for the usage example.
        license: the weights' licence, which no record can know.

    Raises:
        UserError: it is not a run directory, or was changed.
    """
    read = intact_run(run)
    texts = render(read, repo=repo, license=license)
    folder = out or run / "cards"
    for name, text in texts.items():
        atomic.write_text(folder / name, text)
    return [folder / name for name in texts]


def render(run: Run, *, repo: str | None = None, license: str | None = None) -> dict[str, str]:
    """Return the text of each card by file name."""
    facts, model = summary(run), run.model
    known = {
        "run": run,
        "facts": facts,
        "repo": repo,
        "license": license,
        "last": run.checkpoints[-1] if run.checkpoints else None,
        "shape": ffns_text(facts.layers, facts.ffns),
        "origin": origin(run),
        "architecture": {key: model[key] for key in ARCHITECTURE if key in model},
        "training": training_rows(run),
        "heldout": heldout_rows(run),
        "corpus": run.corpus,
        "prepared_by": prepared_by(run.corpus) if run.corpus else None,
        "corpus_hashes": sorted({str(held.manifest.get("corpus")) for held in run.checkpoints}),
        "mixture": mixture(run),
        "dropped": dropped_counts(run),
        "licences": licences(run.corpus) if run.corpus else None,
        "shown_inputs": SHOWN_INPUTS,
        "indicators": indicators(run),
        "scores": last_scores(run.path, results_of(run.path)),
    }
    folder = Path(__file__).parent / "templates"
    return {name: template(source, folder).render(known) for name, source in CARDS.items()}


def origin(run: Run) -> str:
    """Return what training started from."""
    parent = run.checkpoints[0].manifest.get("parent") if run.checkpoints else None
    return f"checkpoint `{parent}`" if parent else "random weights"


def prepared_by(corpus: Corpus) -> str:
    """Return which version, and which commit where that was recorded, prepared a corpus."""
    version = corpus.manifest.get("software", {}).get("mobillama") or ""
    commit = made_by(read_making(corpus.path)).get("source")
    return f"mobillama {version}".strip() + (f" ({commit})" if commit else "")


def training_rows(run: Run) -> list[tuple[str, str]]:
    """Return what the records tell of how the model was trained."""
    facts, machine = summary(run), run.environment
    recipe = flat(run.recipe)
    rows = [
        ("steps", f"{facts.steps or 0:,}"),
        ("tokens", count(facts.tokens)),
        ("time", duration(facts.elapsed_s)),
        ("throughput", f"{count(facts.tokens_per_second)} tokens/s (median)"),
        ("processor", str(machine.get("processor", "not recorded"))),
        ("source", source_text(run)),
    ]
    rows += [
        (f"`{key}`", str(value))
        for key, value in recipe.items()
        if key.startswith(("optimizer.", "train.", "schedule.")) and not isinstance(value, dict)
    ]
    return rows


def licences(corpus: Corpus) -> list[tuple[str, str, int]] | None:
    """Return (subset, licence, documents) of the training documents, or None without pyarrow."""
    try:
        import pyarrow as pa
    except ImportError:
        return None
    counted: Counter[tuple[str, str]] = Counter()
    for path in sorted(corpus.path.glob("train/*/*.documents")):
        with pa.memory_map(str(path)) as file:
            column = pa.ipc.open_file(file).read_all()["license"]
            for entry in column.value_counts().to_pylist():
                counted[path.parent.name, str(entry["values"])] += entry["counts"]
    return [(subset, licence, number) for (subset, licence), number in sorted(counted.items())]
