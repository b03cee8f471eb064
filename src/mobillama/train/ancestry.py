"""The models a run is made from: the one it starts from and its teacher, by the hash of their manifests."""

from pathlib import Path

from tokenizers import Tokenizer

from mobillama.core import records
from mobillama.core.errors import UserError
from mobillama.data import Corpus

from .recipe import Recipe

STARTED_FROM, TEACHER = "started_from", "teacher"


def models_of(recipe: Recipe) -> dict[str, Path]:
    """Return the folders of the models that a recipe names."""
    named = {STARTED_FROM: recipe.model.start_from, TEACHER: recipe.distill and recipe.distill.teacher}
    return {role: folder for role, folder in named.items() if folder is not None}


def ancestors(recipe: Recipe, corpus: Corpus) -> dict[str, str]:
    """Return the manifest hash of each model that a recipe names, after checking every file of it.

    Raises:
        UserError: a model is not there, not whole, has no manifest, or was made with another tokenizer.
    """
    found = {}
    for role, folder in models_of(recipe).items():
        records.require_intact(folder)
        check_tokenizer(folder, corpus)
        found[role] = records.manifest_hash(folder)
    return found


def check_tokenizer(folder: Path, corpus: Corpus) -> None:
    """Stop where a model's tokens are not those of the corpus."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder}: has no tokenizer.json, so nobody knows what its tokens are; add it")
    if Tokenizer.from_file(str(path)).get_vocab() != corpus.tokenizer.get_vocab():
        raise UserError(
            f"{path}: not the tokenizer of {corpus.directory}; prepare a corpus with "
            f'corpus.tokenizer.path = "{path}"'
        )


def refuse_others(run: Path, began: dict[str, str], now: dict[str, str]) -> None:
    """Stop where a model that a run was made from has become another."""
    for role in (STARTED_FROM, TEACHER):
        if began.get(role) != now.get(role):
            what = "model that it started from" if role == STARTED_FROM else "teacher"
            raise UserError(f"{run}: its {what} is another than when it began; restore it")
