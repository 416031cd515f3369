"""What the documents tell people to type works, and the reference pages are what the code says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_command_of_the_tutorial_runs_as_written(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    commands = [
        line[2:]
        for block in re.findall(r"```console\n(.*?)```", text, re.S)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    assert len(commands) >= 10
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, entry in (("card-profile", "profile_main"), ("card-solve", "solve_main")):
        script = programs / name
        script.write_text(f"#!{sys.executable}\nfrom cli import {entry}\n{entry}()\n")
        script.chmod(0o755)
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "profiles" / "letter", folder / "profiles" / "letter")
    environment = {
        **os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg",
    }  # fmt: skip
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip(), command
    assert {p.name for p in (folder / "profiles").glob("*.json")} == {
        "cpu.json", "emulated-orin-nano.json", "emulated-rtx-4060ti.json",
    }  # fmt: skip
    assert (folder / "tables" / "costs.csv").is_file()
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert (folder / "decisions.csv").is_file()
    assert (folder / "decisions.parquet").is_file()
    assert len(list((folder / "plots").glob("*.png"))) >= 4


def run_cells(text: str) -> list[tuple[str, str]]:
    """Run the Python cells of a page in one namespace. For each cell with a block of text below it: what that says, and what came out."""
    import ast
    import contextlib
    import io

    found, names = [], {"__name__": "notebook"}
    for code, _, said in re.findall(r"```python\n(.*?)```\n(\n```text\n(.*?)```)?", text, re.S):
        body = ast.parse(code)
        last = body.body[-1]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            if isinstance(last, ast.Expr):
                exec(compile(ast.Module(body.body[:-1], []), "cell", "exec"), names)
                value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
                print(*([] if value is None else [repr(value)]), end="")
            else:
                exec(compile(body, "cell", "exec"), names)
        if said:
            found.append((said.strip("\n"), out.getvalue().strip("\n")))
    return found


def test_every_cell_of_the_notebook_gives_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cells = run_cells((ROOT / "docs" / "notebook.md").read_text())
    assert len(cells) >= 6
    for said, came_out in cells:
        # How pandas sets its columns apart differs between releases.
        assert came_out.split() == said.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_in_the_documents_exists(page: Path) -> None:
    import cli
    from solver.commands import solve_app
    from split.commands import train_app

    known: dict[str, set[str]] = {}
    for name, app in (("card-profile", cli.profile_app()), ("card-solve", solve_app), ("card-train", train_app)):
        command = typer.main.get_command(app)
        for sub, member in getattr(command, "commands", {"": command}).items():
            known[f"{name} {sub}".strip()] = {flag for p in member.params for flag in p.opts} | {"--help"}
    # Code, in blocks or in backquotes, that begins with one of the two commands; a line may go on after a backslash.
    code = " ".join(re.findall(r"```.*?```|`[^`\n]+`", page.read_text().replace("\\\n", " "), re.S))
    for program, rest in re.findall(r"\b(card-profile [a-z-]+|card-solve)\b((?:[^`\n|;&])*)", code):
        if program in known:
            unknown = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)) - known[program]
            assert not unknown, f"{page.name}: {program}{rest}"


def test_no_link_in_the_documents_is_broken() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", ["commands.md", "profile-format.md"])
def test_the_reference_pages_are_what_the_code_says(name: str) -> None:
    import runpy

    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="generate")["PAGES"]
    assert (ROOT / "docs" / name).read_text() == pages[name](), "run: python docs/generate.py"
