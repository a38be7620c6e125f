"""The house in figures: `python tests/structure.py` prints files, lines, rooms and arrows.

A room is a package, or a module at the top of softeval/. An arrow is an import from one room into
another, at the top of a file or inside a function; imports for types only do not count.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("softeval", "tasks", "trainers", "reports")

# Lowest first. A room may import those above it in this list, never those below it.
FLOORS = (
    {"environment", "errors", "files", "terminal"},
    {"modes", "statistics", "processes", "protocol"},
    {"records", "display", "publishing"},
    {"scoring.grading"},
    {"scoring"},
    {"model"},
    {"decoding", "options"},
    {"lmeval"},
    {"tasks"},
    {"runs"},
    {"replays"},
    {"reports.measured"},
    {"trainers", "trainers.learners", "reports.sections", "reports"},
    {"sweeps"},
    {"cli"},
    {"__init__", "__main__"},
)

# Imports inside functions that reach up on purpose, with the reason.
LAZY = {
    ("cli", "__init__"): "__version__",
    ("runs", "reports"): "Run draws, compares and reports itself for Python users",
}


class Module(NamedTuple):
    """One source file: its dotted name, its room, its path."""

    name: str
    room: str
    path: Path


class Import(NamedTuple):
    """One import of a softeval module; `inside` where a function makes it."""

    importer: Module
    imported: Module
    inside: bool


@cache
def modules() -> list[Module]:
    """Every product file, by name."""
    files = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]
    return [_module(p) for p in files if not any(q.is_symlink() for q in p.parents)]


@cache
def imports() -> list[Import]:
    """Every import of one product file in another, those inside functions too."""
    known = modules()
    return [found for module in known for found in _imports_of(module, known)]


def definitions() -> Iterator[tuple[Module, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every class and function of every product file, nested ones too."""
    for module in modules():
        for node in ast.walk(_tree(module.path)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


def floor(room: str) -> int:
    """How high a room stands; ValueError where no floor holds it."""
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def lines(module: Module) -> int:
    return module.path.read_text(encoding="utf-8").count("\n")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _module(path: Path) -> Module:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] == "softeval" else parts
    is_package = parts[-1] == "__init__" and len(parts) > 1
    name = ".".join(("softeval", *(parts[:-1] if is_package else parts)))
    room = ".".join(parts[:-1]) if len(parts) > 1 else parts[-1]
    return Module(name.removesuffix(".__init__"), room, path)


def _imports_of(module: Module, known: list[Module]) -> Iterator[Import]:
    by_name = {other.name: other for other in known}
    tree = _tree(module.path)
    top = {id(node) for node in tree.body}
    for node in _run_time(tree):
        for name in _names(node):
            target = by_name.get(name) or by_name.get(name.rpartition(".")[0])
            if target is not None and target.room != module.room:
                yield Import(module, target, id(node) not in top)


def _run_time(tree: ast.AST) -> Iterator[ast.AST]:
    waiting = [tree]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                continue
            yield node
            waiting.append(node)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        found = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        found = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        found = []
    return [name for name in found if name.partition(".")[0] == "softeval"]


def main() -> None:
    """Print the house."""
    known = modules()
    sizes = sorted(lines(module) for module in known)
    rooms = Counter(module.room for module in known)
    arrows = Counter((i.importer.room, i.imported.room) for i in imports())
    print(f"{len(known)} files, {sum(sizes):,} lines, median {median(sizes):.0f}, ", end="")
    print(f"largest {sizes[-1]}, {len(rooms)} rooms, {len(arrows)} arrows")
    for room, files in sorted(rooms.items(), key=lambda item: floor(item[0])):
        total = sum(lines(module) for module in known if module.room == room)
        targets = ", ".join(sorted(b for a, b in arrows if a == room))
        print(f"{floor(room):3} {room:16} {files:3} files {total:6,} lines -> {targets}")


if __name__ == "__main__":
    main()
