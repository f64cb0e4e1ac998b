"""`aligntune recipes`: the run files that ship with the package, to read, copy and change (`aligntune.recipes`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aligntune.cli.console import Group, Output, Settings, shared, table

if TYPE_CHECKING:
    from aligntune.recipes import Recipe


@click.group(cls=Group, short_help="List, show and copy the recipes that ship with the package.")
def command() -> None:
    """The run files that ship with the package."""


@command.command("list", short_help="List the recipes.")
@shared
def list_all(settings: Settings) -> Output:
    """List the recipes with what they train and need."""
    from aligntune.recipes import list_recipes

    found = list_recipes()
    rows = [[r.name, r.trains or "(evaluates)", r.summary] for r in found]
    return Output([_plain(r) for r in found], table(rows, ["recipe", "trains", "what it is"]))


@command.command("show", short_help="Print a recipe.")
@click.argument("name")
@shared
def show(settings: Settings, name: str) -> Output:
    """Print the recipe NAME with its comments."""
    from aligntune.recipes import get_recipe

    recipe = get_recipe(name)
    return Output({**_plain(recipe), "text": recipe.text}, recipe.text.rstrip("\n"))


@command.command("copy", short_help="Copy a recipe into a folder of yours.")
@click.argument("name")
@click.argument("destination", default=".")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@shared
def copy(settings: Settings, name: str, destination: str, force: bool) -> Output:
    """Copy the recipe NAME to DESTINATION (a file or a folder; the working folder if left out)."""
    from aligntune.recipes import copy_recipe, get_recipe

    path = copy_recipe(name, destination, force=force)
    verb = "train" if get_recipe(name).trains else "eval"
    return Output({"path": str(path)}, f"{path}\nrun it: aligntune {verb} {path}")


def _plain(recipe: Recipe) -> dict[str, Any]:
    model = recipe.settings.get("model", {}).get("name_or_path")
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "trains": recipe.trains,
        "model": model,
        "path": str(recipe.path),
        **{key.lower(): text for key, text in recipe.fields.items()},
    }
