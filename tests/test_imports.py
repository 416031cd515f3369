"""Imports run one way, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    path.relative_to(ROOT)
    for folder in ("profiler", "solver", "split")
    for path in sorted((ROOT / folder).rglob("*.py"))
] + [Path("cli.py")]

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "fvcore",
    "pandas",
    "scipy",
    "pyarrow",
    "matplotlib",
    "pynvml",
    "jtop",
    "ortools",
    "gguf",
    "grpc",
    "zstandard",
    "cryptography",
    "safetensors",
}

LATE = {Path("split/transport.py"): {"grpc"}}
"""Files that are themselves imported inside functions only, and what they may therefore have at their top."""

MAY_IMPORT = {
    "solver": ("solver", "profiler.profile", "profiler.store", "profiler.tables", "profiler.units"),
    "split": ("split", "solver", "profiler"),
    "profiler": ("profiler",),
    "profiler.codecs": ("profiler.codecs", "profiler.profile"),
    "profiler.workload": ("profiler.workload", "profiler.codecs", "profiler.profile"),
    "profiler.hardware": ("profiler.hardware", "profiler.profile", "profiler.store"),
    "profiler.power": (
        "profiler.power",
        "profiler.hardware.device",
        "profiler.profile",
        "profiler.store",
        "profiler.show",
        "profiler.progress",
        "profiler.tables",
        "profiler.units",
    ),
    "profiler.profile": (),
    "profiler.store": ("profiler.profile",),
    "profiler.units": (),
    "profiler.progress": (),
}
"""What each room may import of ours. The two ends of a run (workload, hardware) do not know each other."""


def parts(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported when the code runs: what stands under TYPE_CHECKING is for readers and checkers."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom) and tree.module:
        # "from profiler import store" imports profiler.store
        yield from (
            f"{tree.module}.{a.name}" if tree.module in ("profiler", "solver", "split") else tree.module
            for a in tree.names
        )
    for child in ast.iter_child_nodes(tree):
        yield from imported(child)


def at_the_top(tree: ast.Module) -> Iterator[str]:
    for statement in tree.body:
        if not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield from imported(statement)


def inside(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_one_way(path: Path) -> None:
    name = parts(path)
    for room, allowed in MAY_IMPORT.items():
        if inside(name, (room,)):
            ours = {
                m
                for m in imported(ast.parse((ROOT / path).read_text()))
                if inside(m, ("profiler", "solver", "split", "cli"))
            }
            stray = {m for m in ours if not inside(m, (*allowed, "profiler.__version__"))}
            assert not stray, (
                f"{path} imports {', '.join(sorted(stray))}; {room} may import {', '.join(allowed) or 'none'}"
            )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_heavy_is_imported_at_the_top_of_a_file(path: Path) -> None:
    heavy = {m for m in at_the_top(ast.parse((ROOT / path).read_text())) if m.partition(".")[0] in HEAVY}
    heavy = {m for m in heavy if m.partition(".")[0] not in LATE.get(path, set())}
    assert not heavy, f"{path} imports {', '.join(sorted(heavy))} at its top"


def test_the_solver_never_loads_torch() -> None:
    for path in FILES:
        if path.parts[0] == "solver":
            found = {m.partition(".")[0] for m in imported(ast.parse((ROOT / path).read_text()))}
            assert not found & {"torch", "transformers", "peft", "fvcore"}, path


def test_files_that_hold_something_heavy_are_imported_inside_functions_only() -> None:
    late = {parts(path) for path in LATE}
    for path in FILES:
        if path not in LATE:
            assert not late & set(at_the_top(ast.parse((ROOT / path).read_text()))), path
