"""`aligntune recipes`: the run files that ship with the package, to read, copy and change.

A recipe is a YAML file under `aligntune/recipes/`; its name is its path there without the ending, and its comment
header says what it needs and how it is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aligntune.cli.console import Group, Output, Settings, shared, table
from aligntune.errors import ConfigurationError
from aligntune.registry import nearest

FOLDER = Path(__file__).resolve().parent.parent / "recipes"


@click.group(cls=Group, short_help="List, show and copy the recipes that ship with the package.")
def command() -> None:
    """The run files that ship with the package."""


@command.command("list", short_help="List the recipes.")
@shared
def list_recipes(settings: Settings) -> Output:
    """List the recipes with their model and algorithm."""
    rows = [summary(name) for name in recipe_names()]
    shown = [[r["name"], r["trains"], r["model"], r["title"]] for r in rows]
    return Output(rows, table(shown, ["recipe", "trains", "model", "what"]))


@command.command("show", short_help="Print a recipe.")
@click.argument("name")
@shared
def show(settings: Settings, name: str) -> Output:
    """Print the recipe NAME with its comments."""
    text = recipe_path(name).read_text(encoding="utf-8")
    return Output({**summary(name), "text": text}, text.rstrip("\n"))


@command.command("copy", short_help="Copy a recipe into a folder of yours.")
@click.argument("name")
@click.argument("destination", required=False)
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@shared
def copy(settings: Settings, name: str, destination: str | None, force: bool) -> Output:
    """Copy the recipe NAME to DESTINATION (a file or a folder; the working folder if left out)."""
    from aligntune.utils.files import write_atomic

    source = recipe_path(name)
    target = Path(destination or ".")
    target = target / source.name if target.is_dir() else target
    if target.exists() and not force:
        raise ConfigurationError(f"{target} is there already", hint="give another name, or --force to overwrite it")
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no folder {target.parent}", hint=f"make it: mkdir -p {target.parent}")
    write_atomic(target, flat_text(name).encode())
    return Output({"path": str(target)}, f"{target}\nrun it: aligntune train {target}")


def recipe_names() -> list[str]:
    """Names of the recipes: paths under `recipes/` without `.yaml`; files that begin with `_` are shared bases."""
    files = [p.relative_to(FOLDER) for p in FOLDER.rglob("*.yaml") if not p.name.startswith("_")]
    return sorted(p.with_suffix("").as_posix() for p in files)


def recipe_path(name: str) -> Path:
    """The file of a recipe.

    Raises:
        ConfigurationError: unknown; the hint holds the nearest name.
    """
    wanted = name.removesuffix(".yaml")
    if wanted not in recipe_names():
        raise ConfigurationError(f"unknown recipe '{name}'", hint=nearest(wanted, recipe_names()))
    return FOLDER / f"{wanted}.yaml"


def flat_text(name: str) -> str:
    """A recipe's text as it can stand alone: its own, or, where it builds on another file, the merged settings."""
    import yaml

    from aligntune.core.config import parse_yaml, read_yaml

    path = recipe_path(name)
    text = path.read_text(encoding="utf-8")
    if "base" not in parse_yaml(text, str(path)):
        return text
    merged = yaml.safe_dump(read_yaml(path), sort_keys=False, allow_unicode=True)
    return "".join(f"{line}\n" for line in _header(text)) + merged


def summary(name: str) -> dict[str, Any]:
    """Name, title (the header's first line), algorithm or task, model and backend of a recipe."""
    from aligntune.core.config import read_yaml

    path = recipe_path(name)
    raw = read_yaml(path)
    trains = raw.get("algo", raw.get("task"))
    header = _header(path.read_text(encoding="utf-8"))
    return {
        "name": name,
        "title": header[0].lstrip("# ") if header else "",
        "trains": trains["name"] if isinstance(trains, dict) else trains,
        "model": raw.get("model", {}).get("name_or_path"),
        "backend": raw.get("backend", "trl"),
        "path": str(path),
    }


def _header(text: str) -> list[str]:
    """The comment lines at the top."""
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]
