"""One page over all stages: what each did and cost, the tables of the evaluations, the curves of the runs.

The page is `aligntune.report.build_story`; this module puts numbers that stages have recorded into its tables, and
computes none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.report.numbers import compact, seconds, size
from aligntune.stages.kinds import Evaluate, Report
from aligntune.stages.plan import Plan, Planned
from aligntune.stages.tables import TABLES

if TYPE_CHECKING:
    from aligntune.report.story import Table
    from aligntune.stages.execution import StageOutcome

TRAINED = ("train", "reward_model")


def draw(plan: Plan, found: Mapping[str, StageOutcome], out: Path, stage: Planned | None = None) -> Path | None:
    """Write the page; None where no stage is finished yet.

    Args:
        plan: of the stages.
        found: what came of them.
        out: the HTML file.
        stage: the report stage, whose words it has and whose earlier stages it shows; None shows all.
    """
    from aligntune.report import build_story
    from aligntune.report.story import Stage

    upto = plan.stages[: plan.stages.index(stage)] if stage is not None else plan.stages
    shown = [s for s in upto if s.kind_name != "report" and found[s.name].status != "waiting"]
    if not shown:
        return None
    words = stage.kind.typed() if stage is not None and isinstance(stage.kind, Report) else None
    about = words.about if words else {}
    stages = [
        Stage(
            s.name,
            run_dir=s.folder if s.kind_name in TRAINED else None,
            about=about.get(s.name, ""),
            seconds=found[s.name].seconds,
            memory_bytes=found[s.name].memory,
        )
        for s in shown
    ]
    tables = [_made(shown, found), *(table for s in shown for table in evaluation_tables(s))]
    lead = words.lead if words and words.lead is not None else plan.config.lead
    title = (words.title if words else None) or plan.config.title or plan.output_dir.name
    return build_story(title, stages, out, lead=lead, tables=tables, facts_of={"Command": plan.command})


def _made(shown: list[Planned], found: Mapping[str, StageOutcome]) -> Table:
    from aligntune.report.story import Table

    rows = []
    for s in shown:
        told = found[s.name]
        what = ", ".join(f"{k.replace('_', ' ')} {_number(v)}" for k, v in told.numbers.items() if v is not None)
        made = what if s.kind_name != "evaluate" else "see the tables below"
        rows.append([s.name, s.kind_name.replace("_", " "), ", ".join(s.needs) or "none", made, str(s.folder)])
    return Table("Stages", ["Stage", "Kind", "Reads", "What came of it", "Folder"], rows)


def evaluation_tables(stage: Planned) -> list[Table]:
    """The tables of an evaluate stage; none of other stages."""
    from aligntune.report.story import Table

    path = stage.folder / TABLES
    if not isinstance(stage.kind, Evaluate) or not path.is_file():
        return []
    raw = json.loads(path.read_bytes())
    models = raw["models"]
    cells = {(row["task"], row["name"], row["model"]): row for row in raw["values"]}
    metrics = list(dict.fromkeys((row["task"], row["name"]) for row in raw["values"]))
    rows = []
    for metric in metrics:
        own = [cells.get((*metric, model)) for model in models]
        rows.append([_named(metric), next(row["n"] for row in own if row), *(_value(row) for row in own)])
    found = [Table(f"{stage.name}: values", ["Metric", "n", *models], _text(rows), "In brackets: the 95% interval.")]
    note = "Paired item by item, with the 95% interval. p is corrected by Holm's method over each task's first metric"
    if raw["differences"]:
        heads = models[1:]
        rows = _gaps(raw["differences"], metrics, heads)
        said = f"Each model minus {models[0]}. {note} and each model; the other metrics have their own."
        found.append(Table(f"{stage.name}: differences to {models[0]}", ["Metric", *heads], _text(rows), said))
    if raw["steps"]:
        heads = models[2:]
        rows = _gaps(raw["steps"], metrics, heads)
        named = [f"{model} - {before}" for before, model in zip(models[1:], heads, strict=False)]
        said = f"Each model minus the one before it. {note}; the other metrics have their own."
        found.append(Table(f"{stage.name}: differences to the model before", ["Metric", *named], _text(rows), said))
    if raw.get("tasks"):
        found += _task_tables(stage.name, raw, note)
    if raw["classes"]:
        found += _class_tables(stage.name, raw)
    return found


def _task_tables(name: str, raw: Mapping[str, Any], note: str) -> list[Table]:
    """One for each pair of tasks: what the examples, or whatever else differs, do to each model."""
    from aligntune.report.story import Table

    found = []
    for task, other in dict.fromkeys((row["changed"], row["against"]) for row in raw["tasks"]):
        own = [row for row in raw["tasks"] if (row["changed"], row["against"]) == (task, other)]
        metrics = list(dict.fromkeys((other, row["comparison"]["metric"]) for row in own))
        rows = [
            [metric[1], *cells[1:]] for metric, cells in zip(metrics, _gaps(own, metrics, raw["models"]), strict=True)
        ]
        said = f"Of the same model on the same rows. {note}; the other metrics have their own."
        found.append(Table(f"{name}: {task} minus {other}", ["Metric", *raw["models"]], _text(rows), said))
    return found


def _gaps(raw: list[dict[str, Any]], metrics: list[tuple[str, str]], models: list[str]) -> list[list[Any]]:
    """A row for each metric, a cell for each model."""
    gaps = {(row["comparison"]["task"], row["comparison"]["metric"], row["model"]): row for row in raw}
    return [[_named(metric), *(_difference(gaps.get((*metric, model))) for model in models)] for metric in metrics]


def _named(metric: tuple[str, str]) -> str:
    return f"{metric[0]}: {metric[1]}"


def _value(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else _with_interval(row["value"], row["low"], row["high"])


def _difference(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    gap = row["comparison"]["difference"]
    if gap is None:
        return str(row["comparison"]["reason"])
    p = row["p_adjusted"] if row["p_adjusted"] is not None else gap["p_value"]
    verdict = (row.get("equivalence") or {}).get("verdict")
    shown = _with_interval(gap["difference"], gap["low"], gap["high"], sign=True)
    chance = "" if p is None else ", p < 1e-15" if p < 1e-15 else f", p = {p:.2g}"
    return shown + chance + (f"; {verdict}" if verdict else "")


def _class_tables(name: str, raw: Mapping[str, Any]) -> list[Table]:
    from aligntune.report.story import Table

    models = raw["models"]
    found = []
    for task in dict.fromkeys(row["task"] for row in raw["classes"]):
        rows = [row for row in raw["classes"] if row["task"] == task]
        cells = []
        for label in dict.fromkeys(row["class"] for row in rows):
            own = {row["model"]: row for row in rows if row["class"] == label}
            cells.append([label, own[models[0]]["n"], *(_class_cell(own[model]) for model in models)])
        note = f"The mean in each class; in brackets the paired difference to {models[0]} with its 95% interval."
        title = f"{name}: {task} {rows[0]['metric']} by {raw['by']}"
        found.append(Table(title, [str(raw["by"]), "n", *models], _text(cells), note if len(models) > 1 else ""))
    return found


def _class_cell(row: Mapping[str, Any]) -> str:
    value = "" if row["mean"] is None else compact(row["mean"])
    if row.get("difference") is None:
        return value
    return f"{value} ({_with_interval(row['difference'], row['low'], row['high'], sign=True)})"


def _with_interval(value: float | None, low: float | None, high: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "no value"
    plus = "+" if sign and value > 0 else ""
    bounds = "" if low is None or high is None else f" [{compact(low)}, {compact(high)}]"
    return f"{plus}{compact(value)}{bounds}"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return str(value) if isinstance(value, int) else compact(value)


def _text(rows: list[list[Any]]) -> list[list[str]]:
    return [[str(cell) for cell in row] for row in rows]


def took(value: float | None, memory: float | None) -> tuple[str, str]:
    """Time and memory as a reader wants them; empty where they are not known."""
    return ("" if value is None else seconds(value)), ("" if memory is None else size(memory))
