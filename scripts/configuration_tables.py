"""Write the generated parts of docs/configuration.md and docs/algorithms.md from the code.

    python scripts/configuration_tables.py          # rewrite what stands between the markers
    python scripts/configuration_tables.py --check  # exit code 1 if a file is out of date

configuration.md: every key with its type, default and meaning (the JSON schema, so the docstrings of the sections), and
the one table of keyword arguments. algorithms.md: a row for each algorithm and task (its class and its module's
docstring, of which the first paper named is the reference).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from aligntune.algorithms.base import algorithm_names, get_algorithm, get_task, task_names
from aligntune.core.config.aliases import keyword_table
from aligntune.core.config.schema import run_schema

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- tables: begin (scripts/configuration_tables.py writes this part) -->", "<!-- tables: end -->"
SECTIONS = {
    "model": "ModelConfig",
    "model.peft": "PeftConfig",
    "dataset and each of datasets": "DatasetConfig",
    "train": "TrainConfig",
    "generation": "GenerationConfig",
    "evaluation": "EvaluationConfig",
    "logging": "LoggingConfig",
    "each of rewards": "RewardConfig",
    "composition": "CompositionConfig",
    "judge": "JudgeConfig",
    "health": "HealthConfig",
    "cache": "CacheConfig",
}


def tables() -> str:
    """The generated part of the page, as Markdown."""
    defs = run_schema()["$defs"]
    parts = ["## Sections\n"]
    for title, name in SECTIONS.items():
        parts.append(f"### `{title}`\n\n{defs[name]['description']}\n\n{_table(defs[name])}\n")
    parts.append("## Tasks (`task`)\n")
    parts += [_algorithm(name, get_task(name), defs[name]) for name in task_names()]
    parts.append("## Algorithms (`algo`)\n")
    parts += [_algorithm(name, get_algorithm(name), defs[name]) for name in algorithm_names()]
    parts.append("## Keyword arguments\n\n" + _keywords())
    return "\n".join(parts)


def _algorithm(name: str, cls: Any, definition: dict[str, Any]) -> str:
    about = (
        f"### `{name}`\n\n{definition['description']} Data: `{cls.data}`. "
        f"Default of `train.learning_rate`: {cls.learning_rate:g}.\n"
    )
    return about + (f"\n{_table(definition)}\n" if len(definition["properties"]) > 1 else "")


def _table(definition: dict[str, Any]) -> str:
    required = definition.get("required", [])
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    properties = definition["properties"]
    for key in sorted(properties, key=lambda key: key not in required):  # the others stay in their order
        entry = properties[key]
        if "const" in entry:
            continue
        default = "required" if key in required else f"`{_yaml(entry.get('default'))}`" if "default" in entry else ""
        rows.append(f"| `{key}` | {_type(entry)} | {default} | {_meaning(entry['description'])} |")
    return "\n".join(rows)


def _meaning(description: str) -> str:
    """A docstring for a cell: one line, with YAML's word for None."""
    text = " ".join(description.split()).replace("|", "&#124;")
    return re.sub(r"`?\bNone\b`?", "`null`", text)


def _type(entry: dict[str, Any]) -> str:
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(_type(option) for option in entry["anyOf"] if option.get("type") != "null"))
    if "$ref" in entry:
        return "mapping"
    if entry.get("type") == "array":
        return f"list of {_type(entry['items'])}"
    name = {"object": "mapping", "integer": "whole number", "boolean": "true, false"}.get(entry["type"], entry["type"])
    limits = [f"{sign} {_yaml(entry[key])}" for key, sign in LIMITS.items() if key in entry]
    return " ".join([name, *limits])


LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _keywords() -> str:
    sft, rl = keyword_table("sft"), keyword_table("rl")
    rows = ["| argument | supervised | RL |", "|---|---|---|"]
    for key in [*sft, *(k for k in rl if k not in sft)]:
        left, right = (f"`{t[key]}`" if key in t else "" for t in (sft, rl))
        rows.append(f"| `{key}` | {left} | {right} |")
    return "\n".join(rows) + "\n"


def algorithm_table() -> str:
    """One row for each algorithm and task, as Markdown."""
    rows = ["| name | learns from | rewards | trained by | `learning_rate` | reference |", "|---|---|---|---|---|---|"]
    for kind, names, get in (("algo", algorithm_names(), get_algorithm), ("task", task_names(), get_task)):
        for name in names:
            cls = get(name)
            rewards = "yes" if cls.uses_rewards else ""
            rows.append(
                f"| `{kind}: {name}` | `{cls.data}` rows | {rewards} | `{cls.trainer.partition(':')[2]}` | "
                f"{cls.learning_rate:g} | {_paper(cls)} |"
            )
    return "\n".join(rows) + "\n"


def _paper(cls: Any) -> str:
    """The first arXiv number in the docstring of the class's module, as a link."""
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", sys.modules[cls.__module__].__doc__ or "")
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else ""


def updated(text: str, fresh: str) -> str:
    """The page with a fresh part between its markers."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{fresh}\n{END}{tail}"


def main() -> int:
    """Rewrite or check both pages."""
    stale = 0
    for name, make in (("configuration.md", tables), ("algorithms.md", algorithm_table)):
        page = DOCS / name
        text = page.read_text(encoding="utf-8")
        fresh = updated(text, make())
        stale += text != fresh
        if "--check" not in sys.argv:
            page.write_text(fresh, encoding="utf-8")
    return int(stale > 0 and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
