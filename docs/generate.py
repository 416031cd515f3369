"""Write the reference pages from the code: ``python docs/generate.py``. A test holds them against the code.

``commands.md`` from the options of the three commands, ``profile-format.md`` from the profile's schema.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import typer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

INTRO = """# {title}

This page is written by `python docs/generate.py` from the code; edit the code, not the page.
"""


def commands() -> str:
    """The page of options of the three commands."""
    import cli
    from solver.commands import solve_app
    from split.commands import train_app

    parts = [
        INTRO.format(title="Commands"),
        inspect.cleandoc(cli.__doc__ or "").partition("\n\n")[2].split("\n", 1)[1],
        "",
    ]
    for name, app in (("card-profile", cli.profile_app()), ("card-solve", solve_app), ("card-train", train_app)):
        command: Any = typer.main.get_command(app)
        members = getattr(command, "commands", {"": command})
        for sub, member in members.items():
            parts += [
                f"\n## {f'{name} {sub}'.strip()}\n",
                inspect.cleandoc(member.help or ""),
                "",
                "| option | meaning |",
                "| --- | --- |",
            ]
            for parameter in member.params:
                if parameter.name == "help":
                    continue
                flags = ", ".join(f"`{flag}`" for flag in parameter.opts) if parameter.opts else f"`{parameter.name}`"
                if getattr(parameter, "param_type_name", "") == "argument":
                    flags = f"`{parameter.metavar or parameter.name}`"
                default = parameter.default
                shown = "" if default in (None, False) or callable(default) else f" Default: `{default}`."
                parts.append(
                    f"| {flags} | {(getattr(parameter, 'help', '') or '').replace('|', chr(92) + '|')}{shown} |"
                )
    return "\n".join(parts) + "\n"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_kind(s) for s in schema["anyOf"] if s.get("type") != "null") + ", or absent"
    if "enum" in schema:
        return ", ".join(f"`{v}`" for v in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}" if "items" in schema else "list"
    if schema.get("type") == "object":
        extra = schema.get("additionalProperties")
        return f"map of {_kind(extra)}" if isinstance(extra, dict) else "object"
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="))
        if key in schema
    ]
    return f"{schema.get('type', 'any')}" + (f" ({', '.join(bounds)})" if bounds else "")


def profile_format() -> str:
    """The page of a profile's fields."""
    from profiler import profile, store

    schema = store.schema()
    parts = [INTRO.format(title="The profile format"), inspect.cleandoc(profile.__doc__ or ""), ""]
    for name, part in {"Profile": schema, **schema["$defs"]}.items():
        parts += [
            f"\n## {name}\n",
            inspect.cleandoc(part.get("description", "")),
            "",
            "| field | what | |",
            "| --- | --- | --- |",
        ]
        required = set(part.get("required", []))
        for field, details in part.get("properties", {}).items():
            need = "required" if field in required else ""
            parts.append(f"| `{field}` | {_kind(details)} {details.get('description', '')} | {need} |")
    return "\n".join(parts) + "\n"


PAGES = {"commands.md": commands, "profile-format.md": profile_format}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (HERE / page).write_text(write(), encoding="utf-8")
        print(f"docs/{page}")
