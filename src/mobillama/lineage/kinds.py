"""The kinds of runs there are: what a recipe has to say for each, and what makes of it what is learnt.

``train`` and ``vision`` do not know each other; here they meet.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mobillama.core import config
from mobillama.core.config import Loaded
from mobillama.train.recipe import Recipe, RunRecipe
from mobillama.vision.recipe import VisionSections


class VisionRecipe(VisionSections, RunRecipe):
    """A recipe file for a model that sees."""


def load(path: Path, overrides: list[str] | None = None) -> Loaded[Any]:
    """Return a recipe of the kind that its file is: with ``[images]`` a model learns to see.

    Raises:
        UserError: the file cannot be read or has problems.
    """
    return config.load(path, VisionRecipe if sees(path) else Recipe, overrides)


def sees(recipe: Path) -> bool:
    """Tell whether a recipe file is of a model that sees; loading one that is broken tells what is wrong."""
    try:
        return "images" in tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def history_of(run: Path) -> Any:
    """Return what a run saw, whichever kind of run it is (`seen.History`, `seen_images.ImageHistory`).

    Raises:
        UserError: not a run directory, its records were changed, or its data are not here.
    """
    from .seen import History
    from .seen_images import ImageHistory

    return ImageHistory(run, VisionRecipe) if sees(run / "run.toml") else History(run)


def prepare(recipe: RunRecipe) -> Path:
    """Make the data that a recipe describes and return its directory."""
    if isinstance(recipe, VisionRecipe):
        from mobillama.vision.preparation import prepare_images

        return prepare_images(recipe.images)
    assert isinstance(recipe, Recipe)
    from mobillama.data import prepare as prepare_text

    return prepare_text(recipe.corpus)


def work_of(recipe: RunRecipe) -> Callable[..., Any]:
    """Return what opens the work of a recipe (`mobillama.train.work.Work`). Imports torch."""
    from mobillama.train.objectives import NextToken
    from mobillama.train.work import TextWork

    if not isinstance(recipe, VisionRecipe):
        return TextWork
    from mobillama.vision.work import VisionWork

    def open_work(recipe: VisionRecipe, *, check: bool = True) -> VisionWork:
        return VisionWork(recipe, lambda model: NextToken(recipe.train.z_loss), check=check)

    return open_work
