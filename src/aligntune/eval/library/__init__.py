"""Well-known evaluations by name, one YAML file each: `tasks: [gsm8k, arc]`, or `{use: arc, dataset: data/arc.jsonl}`.

A file holds what a task of an evaluation file holds, and `about`, its source in one line. What the user writes beside
`use` goes before it. The data come from the hub unless `dataset` names a file; a data set with its columns in another
form than the model needs is changed row by row by a function of `rows` (`transform`).

    use: my_tasks.yaml:capitals         # a task of one's own, in a file of tasks by name

It holds no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError
from aligntune.registry import nearest

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The tasks of the library, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_task(name: str) -> dict[str, Any]:
    """A task as plain values, with `about` where its file has one.

    Args:
        name: of the library, or `file.yaml:name`.

    Raises:
        ConfigurationError: no such file or task (the nearest is named).
    """
    from aligntune.core.config.reading import read_yaml

    file, colon, key = name.rpartition(":")
    if colon and file.lower().endswith((".yaml", ".yml")):
        listed = read_yaml(file)
        if not isinstance(listed.get(key), dict):
            raise ConfigurationError(f"{file} has no task '{key}'", hint=nearest(key, map(str, listed)))
        return {"name": key, **listed[key]}
    if name not in names():
        raise ConfigurationError(
            f"there is no task '{name}' in the library",
            hint=f"{nearest(name, names())}; one of your own is `use: file.yaml:name`",
        )
    return {"name": name, **read_yaml(FOLDER / f"{name}.yaml")}


def expand(tasks: Any) -> Any:
    """The list `tasks` of an evaluation file with every `use` and every plain name replaced by its task.

    Anything that is not a list, and any entry of another form, is left to the checks of the configuration.
    """
    return [_expand(entry) for entry in tasks] if isinstance(tasks, list) else tasks


def _expand(entry: Any) -> Any:
    if isinstance(entry, str):
        entry = {"use": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("use"), str):
        return entry
    task = read_task(entry["use"])
    task.pop("about", None)
    for key, value in entry.items():
        if key == "dataset":
            named = {"name": value} if isinstance(value, str) else value
            # Another file is another source: the hub's subset and split do not apply to it, nor do the hub's own
            # names of columns and wording where a preset knows those of the published files.
            known = task["dataset"] if isinstance(task.get("dataset"), Mapping) else {}
            gone = {
                "name",
                "subset",
                "split",
                "revision",
                *(["column_mapping", "prompt_template"] if "preset" in known else []),
            }
            kept = {k: v for k, v in known.items() if k not in gone}
            task["dataset"] = {**(kept if "name" in named else known), **named}
        elif key != "use":
            task[key] = value
    return task
