"""Write docs/reference/ from the code: commands, rewards, names, Python.

    python scripts/reference_pages.py          # rewrite the pages
    python scripts/reference_pages.py --check  # exit code 1 if a page is out of date

commands.md: every command with its options (the program's own parser). rewards.md: every reward with kind, range,
columns and parameters (the registry). names.md: tasks, kinds, presets, recipes and rubrics by name. python.md: the
public names of `tests/compat/surface.txt` with signature and docstring. Configuration keys are in
docs/configuration.md, which `configuration_tables.py` writes.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import click

REPO = Path(__file__).resolve().parent.parent
FOLDER = REPO / "docs" / "reference"
WRITTEN = "<!-- scripts/reference_pages.py writes this page -->"
KEYS_OF = {
    "aligntune.core.config": "Configuration",
    "aligntune.eval.config": "Evaluation",
    "aligntune.rewards.training.config": "Reward models",
}
"""By module: the page that lists the keys of its sections."""


def cell(text: Any) -> str:
    """Text for a cell of a table: one line, without marks that Markdown would read."""
    return plain(" ".join(str(text).split())).replace("|", "&#124;")


def plain(text: str) -> str:
    """Text in which `<`, `*` and `[` outside of backticks mean nothing."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [p.replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[") for p in parts[::2]]
    return "".join(parts)


def table(rows: list[list[str]], headers: list[str]) -> str:
    """A table of Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# Commands


def commands() -> str:
    """Every command of the program, groups before their members."""
    from aligntune.cli.main import program

    intro = (
        "# Every command and option\n\n"
        + WRITTEN
        + "\n\n`--json`, `-v`, `--debug` and `-h` belong to every command and are"
        " not repeated. [Command line](../cli.md) explains them with examples, and the exit codes.\n"
    )
    return intro + "\n" + "\n".join(_commands(program, None, "aligntune"))


def _commands(group: click.Group, parent: click.Context | None, path: str) -> list[str]:
    context = click.Context(group, parent=parent, info_name=path.rpartition(" ")[2])
    parts = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            parts += [f"## `{path} {name}`\n\n{_help(command)}\n", *_commands(command, context, f"{path} {name}")]
        else:
            level = "##" if parent is None else "###"
            parts.append(f"{level} `{path} {name}`\n\n{_command(command, context, name)}\n")
    return parts


def _command(command: click.Command, parent: click.Context, name: str) -> str:
    context = click.Context(command, parent=parent, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    text = f"```text\n{context.command_path} {usage}\n```\n\n{_help(command)}\n"
    rows = [_option(p, context) for p in command.params if isinstance(p, click.Option) and p.help and not p.hidden]
    rows = [row for row in rows if not row[0].startswith(("`--json", "`--debug", "`-v"))]
    return text + ("\n" + table(rows, ["option", "does"]) + "\n" if rows else "")


def _option(option: click.Option, context: click.Context) -> list[str]:
    name, about = option.get_help_record(context) or ("", "")
    return [f"`{name.replace('|', ' or ')}`", cell(about)]


def _help(command: click.Command) -> str:
    return plain(inspect.cleandoc((command.help or "").partition("\f")[0]))


# Rewards


def rewards() -> str:
    """Every built-in reward with its parameters."""
    from aligntune.rewards.base import REWARDS
    from aligntune.rewards.registry import RewardRegistry, load_builtins

    built_in = sorted(load_builtins())
    text = "# Rewards and their parameters\n\n" + WRITTEN + "\n\n"
    text += (
        f"{len(built_in)} built-in rewards. Parameters are given as `params: {{name: value}}`; [Rewards](../rewards.md)"
        " explains kinds, composition and your own.\n"
    )
    for name in built_in:
        info = RewardRegistry.describe(name)
        columns = ", ".join(f"`{c}`" for c in info.columns) or "none beside the text"
        text += f"\n## `{name}`\n\n{_docstring(REWARDS.get(name))}\n\n"
        text += f"Kind: {info.kind}. Range: {_range(info.range)}. Columns: {columns}.\n"
        parameters = [[f"`{key}`", f"`{value!r}`"] for key, value in info.parameters.items()]
        if parameters:
            text += "\n" + table(parameters, ["parameter", "default"]) + "\n"
    return text


def _range(bounds: Any) -> str:
    low, high = bounds
    return "unbounded" if (low, high) == (float("-inf"), float("inf")) else f"{low:g} to {high:g}"


# Names


def names() -> str:
    """Names that stand in files: tasks, kinds, presets, recipes, rubrics."""
    from aligntune.data.presets import PRESETS
    from aligntune.eval.library import names as task_names
    from aligntune.eval.library import read_task
    from aligntune.eval.registry import EvalRegistry
    from aligntune.recipes import list_recipes
    from aligntune.rewards.judges.rubric import load_rubric, rubric_names

    parts = ["# Tasks, presets, recipes\n\n" + WRITTEN + "\n"]
    tasks = [(name, read_task(name)) for name in task_names()]
    parts.append("## Tasks of the evaluation library\n")
    parts.append(
        table([[f"`{n}`", f"`{t['kind']}`", cell(t.get("about", ""))] for n, t in tasks], ["task", "kind", "source"])
    )
    kinds = [[f"`{name}`", cell(_first(EvalRegistry.get(name)))] for name in EvalRegistry.names()]
    parts.append("\n## Kinds of evaluation\n\n" + table(kinds, ["kind", "measures"]))
    presets = [
        [f"`{name}`", f"`{preset.format}`", ", ".join(f"`{hub}`" for hub in preset.hub_ids)]
        for name, preset in sorted(PRESETS.items())
    ]
    parts.append("\n## Presets of data sets\n\n" + table(presets, ["preset", "format", "applies by itself to"]))
    recipes = [[f"`{r.name}`", cell(r.summary)] for r in list_recipes()]
    parts.append("\n## Recipes\n\n" + table(recipes, ["recipe", "does"]))
    rubrics = [[f"`{name}`", str(load_rubric(name).version), cell(load_rubric(name).task)] for name in rubric_names()]
    parts.append("\n## Rubrics\n\n" + table(rubrics, ["rubric", "version", "asks"]))
    return "\n".join(parts) + "\n"


def _first(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0]


# Python


def python() -> str:
    """The public names with signature and docstring, by module."""
    parts = [
        "# Python\n\n"
        + WRITTEN
        + "\n\nThe names that scripts may rely on: a name may gain optional parameters; it loses"
        " none. What is not here may change.\n"
    ]
    seen: dict[int, str] = {}
    for module, listed in surface().items():
        parts.append(f"## `{module}`\n")
        imported = importlib.import_module(module)
        for name, methods in listed.items():
            value = getattr(imported, name)
            if name == "__version__":
                parts.append("`__version__`: the version.\n")
            elif id(value) in seen:
                parts.append(f"`{name}`: the same as `{seen[id(value)]}`.\n")
            else:
                seen[id(value)] = f"{module}.{name}"
                parts.append(_entry(name, value, methods))
    return "\n".join(parts)


def surface() -> dict[str, dict[str, list[str]]]:
    """Module to public name to its methods, as the tests pin them."""
    found: dict[str, dict[str, list[str]]] = {}
    module = ""
    for line in (REPO / "tests/compat/surface.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if not line.startswith(" "):
            module = line.strip()
            found[module] = {}
            continue
        name, _, method = re.split(r"[(:]", line.strip())[0].partition(".")
        found[module].setdefault(name, [])
        if method:
            found[module][name].append(method)
    return {module: listed for module, listed in found.items() if listed}


def _entry(name: str, value: Any, methods: list[str]) -> str:
    text = f"### `{name}`\n\n"
    if inspect.isclass(value) and issubclass(value, enum.Enum):
        return text + _docstring(value) + "\n\nMembers: " + ", ".join(f"`{member.value}`" for member in value) + ".\n"
    if callable(value):
        text += f"```text\n{_signature(name, value)}\n```\n\n"
    text += _docstring(value) + "\n"
    for method in methods:
        held = getattr(value, method)
        shown = f"{name}.{method}"
        text += f"\n**`{shown}`**\n\n```text\n{_signature(shown, held)}\n```\n\n{_docstring(held)}\n"
    return text


def _signature(name: str, value: Any) -> str:
    if dataclasses.is_dataclass(value) and len(dataclasses.fields(value)) > 8:
        count = len(dataclasses.fields(value))
        page = next((page for module, page in KEYS_OF.items() if value.__module__.startswith(module)), None)
        if page is not None:
            return f"{name}(...)    # {count} keys, see {page}"
        if "Attributes:" in (inspect.getdoc(value) or ""):
            return f"{name}(...)    # {count} attributes"
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return f"{name}(...)"
    kept = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name not in ("self", "cls")]
    shown = re.sub(
        r"<factory>|<[^<>]*>", "...", str(signature.replace(parameters=kept, return_annotation=signature.empty))
    )
    return name + shown


def _docstring(value: Any) -> str:
    """A docstring as Markdown: Google's sections become lists, indented examples become blocks."""
    lines = (inspect.getdoc(value) or "").splitlines()
    out: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if re.fullmatch(r"(Args|Raises|Returns|Attributes|Yields):", line):
            body = []
            while at + 1 < len(lines) and (not lines[at + 1].strip() or lines[at + 1].startswith("    ")):
                at += 1
                body.append(lines[at])
            out += ["", f"{line[:-1]}:", "", *_items(body), ""]
        elif line.startswith((">>> ", "... ")) or (line.startswith("    ") and line.strip()):
            block = []
            while at < len(lines) and lines[at].strip():
                block.append(lines[at])
                at += 1
            out += ["", "```text", *block, "```", ""]
            continue
        else:
            out.append(plain(line))
        at += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def _items(body: list[str]) -> list[str]:
    """The entries of a section of a docstring, one list item each."""
    items: list[str] = []
    for line in body:
        if not line.strip():
            continue
        if line.startswith("     ") and items:
            items[-1] += " " + line.strip()
        else:
            items.append(line.strip())
    shown = []
    for item in items:
        name, colon, rest = item.partition(": ")
        known = colon and re.fullmatch(r"[\w.*, /]+", name)
        shown.append(f"- `{name}`: {plain(rest)}" if known else f"- {plain(item)}")
    return shown


PAGES = {"commands.md": commands, "rewards.md": rewards, "names.md": names, "python.md": python}


def main() -> int:
    """Rewrite or check the pages."""
    FOLDER.mkdir(exist_ok=True)
    stale = []
    for name, make in PAGES.items():
        fresh = make().rstrip() + "\n"
        page = FOLDER / name
        if not page.exists() or page.read_text(encoding="utf-8") != fresh:
            stale.append(name)
            if "--check" not in sys.argv:
                page.write_text(fresh, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print("out of date:", ", ".join(stale))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
