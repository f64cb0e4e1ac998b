"""The evaluation's part of a report: values with intervals, paired differences, calibration, confusion, every item.

>>> block = evaluation_block([("before", first), ("after", last)])
>>> block.differences           # drawn from the paired comparison of `aligntune.eval.comparing`

Results come from `aligntune eval`, or from a run's own `evaluation/` folder. Where there are several, each is compared
with the first one, item by item. The items' part is bounded (`aligntune.report.items`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from aligntune.errors import AlignTuneError
from aligntune.report.confusion import Confusion, confusion_of
from aligntune.report.items import Browser, browser
from aligntune.report.numbers import compact, percent, points, seconds, whole_percent, whole_points
from aligntune.report.read import read_evaluations
from aligntune.report.svg import COLOURS, Series, interval_chart, line_chart
from aligntune.utils.files import number
from aligntune.utils.run_folder import EVALUATION

if TYPE_CHECKING:
    from aligntune.eval.result import EvalResult, TaskResult

Labelled = tuple[str, "EvalResult"]
MOST_ITEMS_BYTES = 3_000_000
"""Share of a page that items may take."""
BINS = 10
"""Of a reliability curve (15 is the metric's; fewer are easier to read)."""


@dataclass(frozen=True)
class Cell:
    """One value as text, with its interval and what is missing."""

    value: str
    interval: str = ""
    note: str = ""


@dataclass(frozen=True)
class TaskBlock:
    """What the template draws of one task; charts are None where there is nothing to draw."""

    name: str
    kind: str
    about: str
    rows: list[tuple[str, list[Cell]]]
    notes: list[str]
    over_time: Markup | None
    calibration: Markup | None
    confusions: list[tuple[str, Confusion]]
    items: Browser | None


@dataclass(frozen=True)
class EvaluationBlock:
    """What the template draws of one or several results."""

    labels: list[str]
    headlines: Markup | None
    differences: Markup | None
    verdicts: list[tuple[str, str]]
    tasks: list[TaskBlock]
    notes: list[str] = field(default_factory=list)

    @property
    def has_items(self) -> bool:
        """Whether there is something to look through, for which the page has a script."""
        return any(task.items is not None for task in self.tasks)


def run_results(folder: Path) -> tuple[list[Labelled], list[str]]:
    """The results that a run has stored, the starting model's first; and what could not be read."""
    from aligntune.eval.result import EvalResult

    found: list[Labelled] = []
    for label, at in (("starting model", folder / EVALUATION / "before"), ("trained model", folder / EVALUATION)):
        if (at / "results.json").exists():
            try:
                found.append((label, EvalResult.load(at)))
            except AlignTuneError as error:  # the rest of the report does not need it
                return found, [error.message]
    return found, []


def label_results(results: Sequence[tuple[Path, EvalResult]]) -> list[Labelled]:
    """Each result with the shortest name that tells it from the others: the model's, its path, or the folder's."""
    models = [result.model for _, result in results]
    choices = [[Path(model).name or model for model in models], models, [str(folder) for folder, _ in results]]
    labels = next((names for names in choices if len(set(names)) == len(names)), choices[-1])
    return [(label, result) for label, (_, result) in zip(labels, results, strict=True)]


def evaluation_block(
    results: Sequence[Labelled], *, history: Path | None = None, budget: int = MOST_ITEMS_BYTES
) -> EvaluationBlock | None:
    """The part of a page; None without results.

    Args:
        results: label and result; the first is what the others are compared with.
        history: a run folder whose `evaluations.jsonl` shows the values over training.
        budget: bytes that the items of all tasks may take.
    """
    if not results:
        return None
    names = list(dict.fromkeys(name for _, result in results for name in result.tasks))
    timeline = read_evaluations(history) if history is not None else []
    share = budget // max(len(names), 1)
    differences, verdicts, notes = _differences(results)
    return EvaluationBlock(
        labels=[label for label, _ in results],
        headlines=_headlines(results, names),
        differences=differences,
        verdicts=verdicts,
        tasks=[_task(name, results, timeline, share) for name in names],
        notes=notes,
    )


def _task(name: str, results: Sequence[Labelled], timeline: list[dict[str, Any]], budget: int) -> TaskBlock:
    having = [(label, result.tasks[name]) for label, result in results if name in result.tasks]
    last = having[-1][1]
    metrics = list(dict.fromkeys(metric for _, task in having for metric in task.metrics))
    confusions = [(label, made) for label, task in having if (made := confusion_of(task.items)) is not None]
    return TaskBlock(
        name=name,
        kind=last.kind,
        about=_about(last),
        rows=[
            (metric, [_cell(result.tasks[name], metric) if name in result.tasks else Cell("") for _, result in results])
            for metric in metrics
        ],
        notes=list(dict.fromkeys(note for _, task in having for note in task.notes)),
        over_time=_over_time(name, last, timeline),
        calibration=_calibration(having),
        confusions=confusions,
        items=browser(having, budget),
    )


def _about(task: TaskResult) -> str:
    parts = [f"{task.headline.n:,} items", str(task.settings.get("source") or "")]
    if "chat_template" in task.settings:
        parts.append("with the chat template" if task.settings["chat_template"] else "in plain text")
    parts.append(f"took {seconds(task.seconds)}")
    return ", ".join(part for part in parts if part)


def _cell(task: TaskResult, name: str) -> Cell:
    metric = task.metrics.get(name)
    if metric is None:
        return Cell("")
    missing = f"{metric.missing} without a score: {metric.reason}" if metric.missing else ""
    if metric.value is None:
        return Cell("none", "", metric.reason)
    text = percent if _is_share(task, name) else compact
    interval = "" if metric.low is None or metric.high is None else f"{text(metric.low)} to {text(metric.high)}"
    return Cell(text(metric.value), interval, missing)


def _is_share(task: TaskResult, name: str) -> bool:
    """Whether a metric is the share of right items: what Wilson's interval is for."""
    return task.metrics[name].method == "wilson"


def _headlines(results: Sequence[Labelled], names: Sequence[str]) -> Markup | None:
    """Every task's headline that lies in [0, 1], one row for each model."""
    rows = []
    for name in names:
        for i, (label, result) in enumerate(results):
            metric = result.tasks[name].headline if name in result.tasks else None
            if metric is None or metric.value is None or metric.low is None or metric.high is None:
                continue
            if not 0 <= metric.low <= metric.value <= metric.high <= 1:
                continue
            rows.append((name if len(results) == 1 else f"{name}, {label}", metric.value, metric.low, metric.high, i))
    if not rows:
        return None
    describe = ", ".join(f"{row[0]} {percent(row[1])}" for row in rows)
    return interval_chart(
        "Headlines of the tasks", rows, describe=describe, text=percent, tick_text=whole_percent, x_range=(0.0, 1.0)
    )


def _differences(results: Sequence[Labelled]) -> tuple[Markup | None, list[tuple[str, str]], list[str]]:
    """The paired differences of the headlines to the first result: drawn where they are shares, and in words."""
    if len(results) < 2:
        return None, [], []
    from aligntune.eval.comparing import compare_all

    first = results[0]
    rows, verdicts, notes = [], [], []
    for i, other in enumerate(results[1:], start=1):
        try:
            compared = _chosen(compare_all([first[1], other[1]]))
        except AlignTuneError as error:
            notes.append(f"{other[0]} and {first[0]}: {error.message}")
            continue
        for row in compared:
            task, gap = row.comparison.task, row.comparison.difference
            if gap is None or gap.low is None or gap.high is None:
                notes.append(str(row.comparison))
                continue
            share = all(_is_share(r.tasks[task], row.comparison.metric) for r in (first[1], other[1]))
            if share:
                label = task if len(results) == 2 else f"{task}, {other[0]}"
                rows.append((label, gap.difference, gap.low, gap.high, i))
            verdicts.append(_verdict(other[0], first[0], row, share))
    chart = None
    if rows:
        describe = ", ".join(f"{row[0]} {points(row[1])} points" for row in rows)
        chart = interval_chart(
            f"Difference to {first[0]} in points", rows, describe=describe, text=points, tick_text=whole_points,
            zero=True,
        )  # fmt: skip
    return chart, verdicts, notes


def _chosen(rows: Sequence[Any]) -> list[Any]:
    """Each task's headline, or its first metric that can be paired (perplexity: its negative log-likelihood)."""
    found: dict[str, Any] = {}
    for row in rows:
        if row.headline or row.comparison.task not in found:
            found[row.comparison.task] = row
    return list(found.values())


def _verdict(other: str, first: str, row: Any, share: bool) -> tuple[str, str]:
    """What the interval of a paired difference says: up, down or flat, and the sentence."""
    c = row.comparison
    gap = c.difference
    text = points if share else compact
    unit = " points" if share else ""
    interval = f"95% interval {text(gap.low)} to {text(gap.high)}, n = {gap.n}"
    told = "" if row.p_adjusted is None else f", corrected p = {row.p_adjusted:.2g}"
    if gap.low <= 0 <= gap.high:
        return "flat", f"{c.task}: no clear difference in {c.metric} between {other} and {first} ({interval}{told})."
    better = (gap.difference > 0) == c.higher_is_better
    size = f"{text(abs(gap.difference)).lstrip('+')}{unit} {'higher' if gap.difference > 0 else 'lower'}"
    judged = "better" if better else "worse"
    sentence = f"{c.task}: {c.metric} of {other} is {size} than that of {first}, which is {judged} ({interval}{told})."
    return "up" if better else "down", sentence


def _over_time(name: str, task: TaskResult, timeline: list[dict[str, Any]]) -> Markup | None:
    """The headline at each evaluation of a run, with its interval as a band."""
    rows = [row for row in timeline if row.get("task") == name and row.get("metrics", {}).get(task.headline.name)]
    found = [(row["step"], row["metrics"][task.headline.name]) for row in rows]
    values = [(float(step), number(metric.get("value"))) for step, metric in found]
    if len([v for _, v in values if v is not None]) < 2:
        return None
    band = [
        (float(step), float(metric["low"]), float(metric["high"]))
        for step, metric in found
        if metric.get("low") is not None and metric.get("high") is not None
    ]
    text = percent if _is_share(task, task.headline.name) else compact
    ends = [v for _, v in values if v is not None]
    return line_chart(
        f"{name}: {task.headline.name}", [Series(task.headline.name, values, dots=True, band=band)],
        describe=f"from {text(ends[0])} to {text(ends[-1])}", text=whole_percent if text is percent else compact,
    )  # fmt: skip


def _calibration(having: Sequence[tuple[str, TaskResult]]) -> Markup | None:
    """How often answers of each confidence are right; the straight line is where both agree."""
    from aligntune.eval.metrics.calibration import reliability_curve

    series = [Series("calibrated", [(0.0, 0.0), (1.0, 1.0)], colour=COLOURS - 1, faint=True)]
    told = []
    for i, (label, task) in enumerate(having):
        items = [item for item in task.items if item.get("confidence") is not None and item.get("correct") in (0, 1)]
        bins = reliability_curve(items, BINS)
        if len(bins) < 2:
            continue
        series.append(Series(label, [(b.confidence, b.accuracy) for b in bins], dots=True, colour=i % (COLOURS - 1)))
        told.append(f"{label} in {len(bins)} bins")
    if not told:
        return None
    return line_chart(
        "Calibration", series, describe="; ".join(told), x_label="confidence", text=whole_percent, y_range=(0.0, 1.0)
    )
