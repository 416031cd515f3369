"""What the documents tell people to type works, and the reference pages are what the code says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def programs_in(folder: Path) -> Path:
    """A folder with the three programs, of this checkout."""
    programs = folder / "bin"
    programs.mkdir()
    for name in ("profile", "solve", "train"):
        script = programs / f"card-{name}"
        script.write_text(f"#!{sys.executable}\nfrom cli import {name}_main\n{name}_main()\n")
        script.chmod(0o755)
    return programs


def test_every_command_of_the_tutorial_runs_as_written(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    commands = [
        line[2:]
        for block in re.findall(r"```console\n(.*?)```", text, re.S)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    assert len(commands) >= 10
    programs = programs_in(tmp_path)
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
    if shutil.which("git"):  # what the tutorial writes is nobody's to commit
        shutil.copy(ROOT / ".gitignore", folder)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        left = subprocess.run(
            ["git", "status", "--short", "--untracked-files=all"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        stray = [line.split()[-1] for line in left.stdout.splitlines() if "profiles/letter/" not in line]
        assert stray == [".gitignore"]


def test_two_machines_rehearsed_on_one_run_as_written(tmp_path: Path) -> None:
    """The block of docs/training.md, as one script in a fresh folder; only the port is a free one."""
    import socket

    (block,) = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.S)
    assert block.count("$ card-train ") == 3
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = "set -e\n" + "\n".join(line.removeprefix("$ ") for line in block.splitlines()) + "\nwait $!\n"
    folder = tmp_path / "clone"
    folder.mkdir()
    shutil.copy(ROOT / "README.md", folder)
    environment = {
        **os.environ, "PATH": f"{programs_in(tmp_path)}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", script.replace(":7770", f":{port}")],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 turns in 2 rounds, 0 lost" in done.stdout
    assert (folder / "server" / "run" / "adapter" / "adapter_model.safetensors").is_file()
    # A device holds no more than its own three files, and no key but its own.
    kept = {path.name for path in (folder / "device" / "certificates").iterdir()}
    assert kept == {"authority.pem", "orin-nano.pem", "orin-nano.key"}


@pytest.mark.parametrize("page", ["training.md", "security.md", "link.md", "data.md"])
def test_every_command_about_training_is_one_that_the_programs_take(page: str) -> None:
    """Parsed, required options and all; what needs another machine is not run."""
    import cli
    from split.commands import train_app

    apps = {"card-profile": typer.main.get_command(cli.profile_app()), "card-train": typer.main.get_command(train_app)}
    text = (ROOT / "docs" / page).read_text().replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.S) for line in block.splitlines()]  # fmt: skip
    parsed = 0
    for line in lines:
        words = shlex.split(line.rstrip("& "), comments=True)
        if words and words[0] in apps:
            group: Any = apps[words[0]]
            group.commands[words[1]].make_context(words[1], words[2:])
            parsed += 1
    assert parsed >= (7 if page == "training.md" else 1)


def test_the_columns_of_a_report_are_those_that_the_page_explains() -> None:
    from split.report import COLUMNS, ROUND
    from split.stages import STAGES

    text = (ROOT / "docs" / "prediction.md").read_text()
    table = text.partition("## The columns of report.csv")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    assert [name for columns, _ in rows for name in re.findall(r"`(\w+)`", columns)] == list(COLUMNS)
    (stages,) = (what for columns, what in rows if columns.strip() == "`stage`")
    assert re.findall(r"`(\w+)`", stages) == [*STAGES, ROUND]


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
    # Code, in blocks or in backquotes, that begins with one of the three commands; a line may go on after a backslash.
    code = " ".join(re.findall(r"```.*?```|`[^`\n]+`", page.read_text().replace("\\\n", " "), re.S))
    for program, rest in re.findall(r"\b(card-(?:profile|train) [a-z-]+|card-solve)\b((?:[^`\n|;&])*)", code):
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
