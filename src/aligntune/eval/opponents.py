"""The other side of a win rate: an earlier evaluation, read from its folder, or a model to load.

    earlier_answers("runs/base-eval", "chat", ids)        # question to answer

Questions are found by their ids, which depend on a row's content alone, so the earlier evaluation must have asked the
same rows. Where its folder has no task of this name, the only task with answers is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligntune.errors import ValidationError
from aligntune.eval.result import RESULTS, EvalResult
from aligntune.utils.files import jsonable


def is_result(path: str) -> bool:
    """Whether a path is the folder of an evaluation (else it names a model)."""
    return (Path(path).expanduser() / RESULTS).is_file()


def earlier_answers(path: str, task: str, ids: Sequence[str]) -> dict[str, str]:
    """Question to the answer that an earlier evaluation stored.

    Args:
        path: its folder.
        task: of this evaluation.
        ids: of the questions that will be asked.

    Raises:
        ValidationError: the folder holds no answers, or none to these questions.
    """
    result = EvalResult.load(Path(path).expanduser())
    written = {
        name: answers for name, found in result.tasks.items() if (answers := _answers(found.items))
    }  # several samples: the first one
    name = task if task in written else next(iter(written)) if len(written) == 1 else None
    if name is None:
        said = f"tasks with answers: {', '.join(written)}" if written else "none of its tasks has answers"
        raise ValidationError(f"{path} has no answers of a task '{task}' ({said})", hint="give the task the same name")
    shared = sum(i in written[name] for i in ids)
    if not shared:
        raise ValidationError(
            f"{path} (model {result.model}) answered none of the {len(ids)} questions of '{task}'",
            hint="use the data, the transform and the columns of that evaluation",
        )
    return written[name]


def _answers(items: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in items:
        if isinstance(item.get("output"), str):
            found.setdefault(item["id"], item["output"])
    return found


def identity(path: str | None) -> Any:
    """What a journal must agree on about a model or a result folder: its files, with size and time of change."""
    if path is None:
        return None
    folder = Path(path).expanduser()
    files = [folder / RESULTS] if is_result(path) else sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return jsonable([[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files])
