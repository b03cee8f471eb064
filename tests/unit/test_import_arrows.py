"""The house stays a house: packages import lower floors only, and the device part never reaches torch."""

import ast
import subprocess
import sys
from pathlib import Path

import mobillama

SOURCE = Path(mobillama.__file__).parent
FLOORS = [
    {"core"},
    {"model", "data", "report", "engine"},
    {"train", "vision", "export", "serve"},
    {"lineage", "evaluate"},
    {"cli", "studies"},
]
FLOOR_OF = {package: number for number, floor in enumerate(FLOORS) for package in floor}


def imported_packages(path: Path) -> set[str]:
    """Return the packages of ours that a module names in any import, also inside functions."""
    here = ("mobillama", *path.relative_to(SOURCE).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "mobillama" and len(part) > 1 and part[1] in FLOOR_OF}


def test_packages_import_lower_floors_only():
    wrong = [
        f"{path.relative_to(SOURCE)} imports {imported}"
        for path in SOURCE.rglob("*.py")
        if (package := path.relative_to(SOURCE).parts[0]) in FLOOR_OF
        for imported in imported_packages(path)
        if imported != package and FLOOR_OF[imported] >= FLOOR_OF[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_package_has_a_floor():
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages <= set(FLOOR_OF)


def test_the_device_part_never_reaches_torch():
    code = (
        "import sys, mobillama, mobillama.core, mobillama.engine, mobillama.report, mobillama.cli;"
        "import mobillama.lineage.inspect, mobillama.lineage.verify;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
