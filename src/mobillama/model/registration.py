"""Registration with transformers' Auto classes, put off until transformers is imported.

The Auto classes live in a package that imports torch, which takes seconds, while recipes,
accounting and `inspect` need neither. So a finder waits for transformers' Auto modules and imports
ours right after them; ours register themselves.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

FOLLOWERS = {
    "transformers.models.auto.configuration_auto": "mobillama.model.configuration",
    "transformers.models.auto.modeling_auto": "mobillama.model.modeling",
}


class FollowingFinder(MetaPathFinder):
    """Find a module the ordinary way and have its follower imported after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        follower = FOLLOWERS.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if follower else None
        if follower is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_both(module: ModuleType) -> None:
            execute(module)
            importlib.import_module(follower)

        spec.loader.exec_module = execute_both
        return spec


def register_with_transformers() -> None:
    """Make the Auto classes know MobiLlama, now if they are imported, else as soon as they are."""
    if not any(isinstance(finder, FollowingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, FollowingFinder())
    for auto_module, follower in FOLLOWERS.items():
        if auto_module in sys.modules:
            importlib.import_module(follower)
