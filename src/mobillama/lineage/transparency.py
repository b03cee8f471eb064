"""The transparency table: for each indicator of openness, what the records show, and nothing more.

Source: the questions of the foundation-model transparency index, as far as they concern one model.
"""

from dataclasses import dataclass
from typing import Any

from mobillama.core.records import LEDGER, MANIFEST
from mobillama.report.page import count, duration
from mobillama.report.run import Run
from mobillama.report.summary import heldout_rows, summary

from .describe_files import ffns_text
from .results import results_in


@dataclass(frozen=True)
class Indicator:
    """One line of the table; ``disclosed`` is yes, partly or no."""

    domain: str
    indicator: str
    disclosed: str
    evidence: str


def indicators(run: Run) -> list[Indicator]:
    """Return the table's lines: each is "yes" only by a record that is there."""
    domains = {
        "data": data_lines(run),
        "compute": compute_lines(run),
        "methods": methods_lines(run),
        "model": model_lines(run),
        "records": records_lines(run),
        "evaluation": evaluation_lines(run),
    }
    return [
        Indicator(domain, question, disclosed(state), evidence if state else "–")
        for domain, lines in domains.items()
        for question, state, evidence in lines
    ]


Line = tuple[str, Any, str]
"""The question, what was found ("partly", or anything that is true or false), and where."""


def disclosed(state: Any) -> str:
    """Return yes, partly or no."""
    return "partly" if state == "partly" else "yes" if state else "no"


def data_lines(run: Run) -> list[Line]:
    """What is known of the documents."""
    corpus = run.corpus.manifest if run.corpus else {}
    inputs, subsets = corpus.get("inputs", []), corpus.get("subsets", {})
    here = run.corpus is not None
    return [
        ("sources of the training data", inputs, f"{len(inputs)} input files with SHA-256"),
        ("size and composition", subsets, f"{len(subsets)} subsets in documents, tokens and bytes"),
        ("licence and source of each document", here, "document tables of the corpus"),
        ("what was filtered out, and why", here, "`dropped.jsonl`, `quarantine.jsonl`: one line a document"),
        ("preparation code and settings", corpus.get("recipe"), "recipe in the corpus manifest; open source"),
        ("order in which samples were seen", here, "`mobillama seen RUN --step N`, for every step"),
        ("origin of any passage", here, "`mobillama find` and `mobillama trace`"),
    ]


def compute_lines(run: Run) -> list[Line]:
    """What is known of the machine and its work."""
    facts, machine = summary(run), run.environment
    hardware = f"{machine.get('processor')}, {machine.get('cpu_count')} CPUs"
    return [
        ("hardware", machine.get("processor"), hardware),
        ("duration", facts.elapsed_s, f"{duration(facts.elapsed_s)} of training"),
        ("tokens processed", facts.tokens, f"{count(facts.tokens)} tokens"),
        ("energy and emissions", None, ""),
    ]


def methods_lines(run: Run) -> list[Line]:
    """What is known of the code and the settings."""
    source = run.checkpoints[-1].manifest.get("source", {}) if run.checkpoints else {}
    code = "partly" if source.get("dirty") else source.get("commit")
    return [
        ("training code", code, source_text(run)),
        (
            "hyper-parameters with their origin",
            run.origins,
            f"`run.toml`, `origins.json`: {len(run.origins)}",
        ),
        ("software versions", run.environment.get("packages"), "`environment.json`"),
    ]


def model_lines(run: Run) -> list[Line]:
    """What is there of the model."""
    facts, held = summary(run), run.checkpoints
    states = {path.parent.name for path in run.path.glob(f"states/*/{MANIFEST}")}
    resumable = sum(one.path.name in states for one in held)
    shape = f"{ffns_text(facts.layers, facts.ffns)}, {count(facts.parameters)} stored parameters"
    return [
        ("architecture", held, shape),
        ("final weights", held, "safetensors, with SHA-256 and BLAKE3"),
        ("intermediate checkpoints", len(held) > 1, f"{len(held)}, chained by their manifests' hashes"),
        (
            "optimizer state, to continue or replay",
            "partly" if 0 < resumable < len(held) else resumable,
            f"with {resumable} of {len(held)} checkpoints",
        ),
        ("intended use, limits and risks", "partly", "in general terms, in the model card"),
    ]


def records_lines(run: Run) -> list[Line]:
    """What is there of the run's history."""
    curves = f"`metrics.jsonl`: {len(run.metrics):,}, `evaluations.jsonl`: {len(run.evaluations):,}"
    replays = sum(entry.get("event") == "replay" and bool(entry.get("equal")) for entry in run.ledger)
    return [
        ("training and evaluation curves", run.metrics, curves),
        ("tamper-evident history", run.ledger, f"`{LEDGER}`: {len(run.ledger)} hash-chained entries"),
        ("repeatability, bit for bit", replays, f"{replays} replays in the ledger ended equal"),
    ]


def evaluation_lines(run: Run) -> list[Line]:
    """What the model was measured on."""
    results = [path for path in results_in(run.path) if not path.name.startswith("contamination")]
    return [
        ("held-out text", run.evaluations, f"{len(heldout_rows(run))} subsets, beside xz and zstd"),
        ("benchmarks", results, f"{len(results)} result files in the run"),
    ]


def source_text(run: Run) -> str:
    """Return the commit that made the last checkpoint, and whether it had changes."""
    source = run.checkpoints[-1].manifest.get("source", {}) if run.checkpoints else {}
    if not source.get("commit"):
        return "not recorded"
    return f"commit `{source['commit']}`" + (", with uncommitted changes" if source.get("dirty") else "")
