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
    assert len(list((folder / "plots").glob("*.png"))) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_in_the_documents_exists(page: Path) -> None:
    import cli

    known: dict[str, set[str]] = {}
    for name, app in (("card-profile", cli.profile_app), ("card-solve", cli.solve_app)):
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
