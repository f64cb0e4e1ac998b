"""Tables over several models on the same tasks: values with intervals, paired differences, one table per class.

`measure(configs, folder)` reads the finished evaluations, compares each model with the first, and from the third on
with the one before it, item by item (`aligntune.eval.comparing`), and a task with another one on the same rows where
that is asked for (examples in the prompt against none); it writes `tables.json`, which the report draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.errors import ValidationError
from aligntune.registry import nearest
from aligntune.utils.files import write_json

if TYPE_CHECKING:
    from aligntune.eval import EvalResult

TABLES = "tables.json"


def measure(
    configs: Mapping[str, Mapping[str, Any]],
    folder: Path,
    *,
    margin: float | None = None,
    by: str | None = None,
    against: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write `tables.json`, and give the headline values.

    Args:
        configs: name of each model to its evaluation.
        folder: of the stage.
        margin: largest difference that does not matter.
        by: column whose values give a table each.
        against: task to the task that it is compared with, for every model.

    Returns:
        `<model> <task> <metric>` to value.

    Raises:
        ValidationError: no row has the column, or two tasks of `against` share no rows.
    """
    from aligntune.eval import EvalResult
    from aligntune.eval.comparing import compare_all

    results = [
        dataclasses.replace(EvalResult.load(config["output_dir"]), model=name) for name, config in configs.items()
    ]
    rows = compare_all(results, margin=margin) if len(results) > 1 else []
    steps = [row for i in range(2, len(results)) for row in compare_all([results[i - 1], results[i]], margin=margin)]
    tables: dict[str, Any] = {
        "models": list(configs),
        "values": [{"model": r.model, **row} for r in results for row in r.rows()],
        "differences": [row.to_dict() for row in rows],
        "steps": [row.to_dict() for row in steps],
        "tasks": _between_tasks(results, against or {}, margin),
        "by": by,
        "classes": by_class(results, next(iter(configs.values())), by) if by is not None else [],
    }
    write_json(folder / TABLES, tables)
    return {f"{r.model} {t.name} {t.headline.name}": t.headline.value for r in results for t in r.tasks.values()}


def _between_tasks(
    results: Sequence[EvalResult], against: Mapping[str, str], margin: float | None
) -> list[dict[str, Any]]:
    """Every model's task minus another one of its tasks; p-values are corrected over all of them."""
    from aligntune.eval.comparing import compare_all
    from aligntune.eval.significance import adjust

    found: list[dict[str, Any]] = []
    for task, other in against.items():
        for result in results:
            named = dataclasses.replace(result.tasks[task], name=other)
            pair = [dataclasses.replace(result, tasks={other: part}) for part in (result.tasks[other], named)]
            rows = compare_all(pair, margin=margin)
            if all(row.comparison.difference is None for row in rows):
                raise ValidationError(
                    f"against: {task} and {other} have no row in common", hint="give both tasks the same dataset"
                )
            found += [{**row.to_dict(), "changed": task, "against": other} for row in rows]
    known = [_p_value(row) for row in found]
    return [{**row, "p_adjusted": p} for row, p in zip(found, adjust(known), strict=True)]


def _p_value(row: Mapping[str, Any]) -> float | None:
    gap = row["comparison"]["difference"]
    return gap["p_value"] if row["headline"] and gap else None


def by_class(results: Sequence[EvalResult], config: Mapping[str, Any], by: str) -> list[dict[str, Any]]:
    """The headline metric of every task in each class of the items.

    Args:
        results: of the models; the first is what the others are compared with.
        config: of one evaluation, whose data have the column.
        by: the column, or a dotted path.

    Returns:
        Rows with `task`, `metric`, `class`, `model`, `n`, `mean`, and for the others `difference`, `low` and `high`.

    Raises:
        ValidationError: no row has the column.
    """
    from aligntune.data.examples import lookup
    from aligntune.eval import EvalRunner
    from aligntune.eval.config import build_eval_config
    from aligntune.eval.result import item_means
    from aligntune.eval.tasks.base import item_ids

    found: list[dict[str, Any]] = []
    for job in EvalRunner(build_eval_config({k: v for k, v in config.items() if k != "output_dir"})).prepare():
        classes: dict[str, list[str]] = {}
        for i, row in zip(item_ids(job.rows), job.rows, strict=True):
            value = lookup(row, by)
            if value is not None:
                classes.setdefault(str(value), []).append(i)
        if not classes:
            columns = sorted({column for row in job.rows for column in row})
            raise ValidationError(f"by: no row of {job.task.name} has '{by}'", hint=nearest(by, columns))
        name = job.task.name
        metric = results[0].tasks[name].headline.name
        means = {r.model: item_means(r.tasks[name].items, metric) for r in results}
        for label in sorted(classes):
            found += [{"task": name, "metric": metric, "class": label, **row} for row in _of(classes[label], means)]
    return found


def _of(ids: Sequence[str], means: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One row for each model over some items."""
    from aligntune.eval.stats import paired_difference

    rows: list[dict[str, Any]] = []
    first = next(iter(means.values()))
    for k, (model, scores) in enumerate(means.items()):
        own = [scores[i] for i in ids if i in scores]
        row: dict[str, Any] = {"model": model, "n": len(own), "mean": sum(own) / len(own) if own else None}
        shared = [i for i in ids if i in scores and i in first]
        if k and len(shared) > 1:
            gap = paired_difference([scores[i] for i in shared], [first[i] for i in shared])
            row |= {"difference": gap.difference, "low": gap.low, "high": gap.high}
        rows.append(row)
    return rows
