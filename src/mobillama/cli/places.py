"""Where a verb finds what a person names: recipes that ship with the package, models by any handle."""

from pathlib import Path

import mobillama
from mobillama.core.errors import UserError

PACKAGE = Path(mobillama.__file__).parent


def recipe_path(name: str) -> Path:
    """Return a recipe that ships with the package, installed or in a checkout."""
    for folder in (PACKAGE / "recipes", PACKAGE.parent.parent / "recipes"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"recipe {name} is not part of this installation; install mobillama again")
