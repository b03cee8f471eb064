"""The running Python's standard library as documents: a real corpus that every machine has.

Licence: PSF-2.0, the licence CPython is distributed under. Some modules carry notices of their own
authors; these stand in the modules' text and so travel with the documents.
"""

import ast
import inspect
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path, PurePosixPath

from mobillama.core.errors import UserError

LICENSE = "PSF-2.0"
TOPICS = "pydoc_data/topics.py"
# Tests are not what a library says or does; the rest is generated from the machine or installed by others.
LEFT_OUT_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
LEFT_OUT_PREFIXES = ("_sysconfigdata", "test_", "_test")


def folder() -> Path:
    """Return where the standard library lies."""
    return Path(sysconfig.get_paths()["stdlib"])


def module_files() -> list[str]:
    """Return the library's modules as sorted relative paths, without tests and generated files.

    Raises:
        UserError: this Python keeps its library elsewhere than in source files.
    """
    names: list[str] = []
    for place, folders, files in os.walk(folder()):
        folders[:] = [name for name in folders if name not in LEFT_OUT_FOLDERS]
        names += [
            Path(place, name).relative_to(folder()).as_posix()
            for name in files
            if name.endswith(".py") and not name.startswith(LEFT_OUT_PREFIXES)
        ]
    if not names:
        raise UserError(f"{folder()}: no source files of the standard library here; use another Python")
    return sorted(names)


def module_name(file: str) -> str:
    """Return the dotted name of the module in a relative path."""
    return ".".join(PurePosixPath(file).with_suffix("").parts).removesuffix(".__init__")


def source_name(module: str) -> str:
    """Return the source to cite: the module and the Python it came with."""
    return f"{module}, Python {platform.python_version()}"


def read_source(path: str) -> str:
    """Return a module's text, decoded as Python itself would."""
    with tokenize.open(path) as file:
        return file.read()


def documentation(module: str, text: str) -> str:
    """Return a module's docstrings in their order, each under the name and arguments of what it describes."""
    return "\n\n".join(_described(ast.parse(text), module))


def topics() -> dict[str, str]:
    """Return the documentation topics that pydoc carries, by name."""
    return dict(sorted(import_module("pydoc_data.topics").topics.items()))


def _described(node: ast.AST, name: str) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
        if text:
            yield f"{name}\n\n{text}"
    # Only statements hold definitions; expressions, most of the tree, are not looked at.
    for block in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, block, []):
            if isinstance(child, ast.ClassDef):
                yield from _described(child, f"{name}.{child.name}")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _described(child, f"{name}.{child.name}({ast.unparse(child.args)})")
            elif isinstance(child, ast.stmt | ast.ExceptHandler):
                yield from _described(child, name)
