"""Run files that ship with the package: one YAML file per recipe, with a header that says what it needs.

    >>> from aligntune.recipes import copy_recipe, get_recipe
    >>> get_recipe("qwen3-0.6b-grpo-gsm8k").needs
    'one CUDA GPU with 24 GB ...'
    >>> copy_recipe("qwen3-0.6b-grpo-gsm8k", "my-run.yaml")
    PosixPath('my-run.yaml')

A header is the comment at the top: one sentence, an empty comment line, then fields (`Needs`, `Model`, `Run`, `Note`
and, only where it is published, `Expect`), each as `# Field: text` with indented lines after it. A recipe in a folder
is named after both (`quickstart/sft.yaml` is `quickstart-sft`); files that begin with `_` are bases of others.

Recipes are read, not run, here: `aligntune train` and `load_config` take the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError
from aligntune.registry import nearest

FOLDER = Path(__file__).resolve().parent
_FIELD = re.compile(r"([A-Z][a-z]+):\s+(.*)")


@dataclass(frozen=True)
class Recipe:
    """One recipe and its header.

    Attributes:
        name: what `get_recipe` and the command line call it.
        path: the file in the package.
        summary: the header's first sentence.
        fields: the header's fields, each on one line (`Needs`, `Model`, `Run`, `Note`, `Expect`).
    """

    name: str
    path: Path
    summary: str
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def needs(self) -> str:
        """GPU memory and packages; empty where the header does not say."""
        return self.fields.get("Needs", "")

    @property
    def command(self) -> str:
        """The command that runs it; empty where the header does not say."""
        return self.fields.get("Run", "")

    @property
    def text(self) -> str:
        """The file as it is, comments included."""
        return self.path.read_text(encoding="utf-8")

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings as plain values, with those of its base."""
        from aligntune.core.config import read_yaml

        return read_yaml(self.path)

    @property
    def trains(self) -> str:
        """The algorithm or task."""
        chosen = self.settings.get("algo", self.settings.get("task", ""))
        return str(chosen.get("name", "") if isinstance(chosen, dict) else chosen)


def list_recipes() -> list[Recipe]:
    """All recipes, by name."""
    files = [p for p in FOLDER.rglob("*.yaml") if not p.name.startswith("_")]
    return sorted((_read(p) for p in files), key=lambda recipe: recipe.name)


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`; an ending `.yaml` and `/` for the folder's `-` are understood.

    Raises:
        ConfigurationError: there is none; the hint holds the nearest name.
    """
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    wanted = name.removesuffix(".yaml").replace("/", "-")
    if wanted not in recipes:
        raise ConfigurationError(f"unknown recipe '{name}'", hint=nearest(wanted, recipes))
    return recipes[wanted]


def standalone_text(recipe: Recipe) -> str:
    """The recipe's text as a file that loads alone.

    It is the file itself, comments included; where that builds on another with `base:`, it is its header over the
    merged settings, because a relative path would lead nowhere from another folder.
    """
    import yaml

    from aligntune.core.config import parse_yaml

    text = recipe.text
    if "base" not in parse_yaml(text, str(recipe.path)):
        return text
    header = "".join(f"{line}\n" for line in _header(text))
    return header + yaml.safe_dump(recipe.settings, sort_keys=False, allow_unicode=True)


def copy_recipe(name: str, dest: str | Path = ".", *, force: bool = False) -> Path:
    """Write a recipe to `dest`, a file or a folder, as a file that loads alone; returns where it is.

    Raises:
        ConfigurationError: there is no such recipe or no such folder, or the file is there already.
    """
    recipe = get_recipe(name)
    target = Path(dest)
    target = target / f"{recipe.name}.yaml" if target.is_dir() else target
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no folder {target.parent}", hint=f"make it: mkdir -p {target.parent}")
    if target.exists() and not force:
        raise ConfigurationError(f"{target} is there already", hint="give another name, or force=True (--force)")
    target.write_text(standalone_text(recipe), encoding="utf-8")
    return target


def _read(path: Path) -> Recipe:
    name = "-".join(path.relative_to(FOLDER).with_suffix("").parts)
    lines = [line.removeprefix("#") for line in _header(path.read_text(encoding="utf-8"))]
    summary, fields, last = "", {}, ""
    for line in lines:
        found = _FIELD.fullmatch(line.strip())
        if found and not line.startswith("  "):
            last = found[1]
            fields[last] = found[2]
        elif last and line.startswith("  "):
            fields[last] += f" {line.strip()}"
        elif not last:
            summary = f"{summary} {line.strip()}".strip()
    return Recipe(name, path, summary, fields)


def _header(text: str) -> list[str]:
    """The comment lines at the top."""
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]
