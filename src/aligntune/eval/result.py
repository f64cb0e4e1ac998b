"""Results of an evaluation: values with intervals, every item, and the paired comparison of two results.

    before, after = EvalRunner(base).run(), EvalRunner(tuned).run()
    for row in after.compare(before):
        print(row)            # sums accuracy: 0.614 - 0.342 = +0.272 [+0.2278, +0.3141], p = 1.6e-31, n = 500

On disk: `results.json` and one `items/<task>.jsonl` per task. Comparison pairs items by their id, which depends on the
row's content alone, so the order of the data does not matter; items that only one result has are counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from aligntune.errors import ValidationError
from aligntune.eval.metrics.base import MetricValue
from aligntune.eval.stats import PairedDifference, paired_difference, ratio_interval
from aligntune.utils.files import read_lines, rewrite_lines, write_json

RESULTS = "results.json"
ITEMS = "items"


@dataclass(frozen=True)
class TaskResult:
    """One task's values and items.

    Attributes:
        name: of the task.
        kind: of evaluation.
        metrics: name to value; the first is the headline.
        items: every item with its `scores` (metric name to number or None).
        settings: what was measured and how: the task's settings, data source, content hash, chat template.
        notes: one sentence for each thing that a reader should know.
        seconds: wall-clock time.
        details: what the kind says beside its metrics: scores of each label, confusion counts.
    """

    name: str
    kind: str
    metrics: dict[str, MetricValue]
    items: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def headline(self) -> MetricValue:
        """The first metric."""
        return next(iter(self.metrics.values()))

    def values(self) -> dict[str, float]:
        """Metric name to number, without those that have none."""
        return {name: metric.value for name, metric in self.metrics.items() if metric.value is not None}

    def to_dict(self, *, items: bool = False) -> dict[str, Any]:
        """Plain values, ready for JSON; `items` includes every item."""
        plain = {
            "name": self.name,
            "kind": self.kind,
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "settings": self.settings,
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
            **({"details": self.details} if self.details else {}),
        }
        return {**plain, "items": self.items} if items else plain


@dataclass(frozen=True)
class Comparison:
    """One metric of one task in two results, item by item.

    Attributes:
        task: name.
        metric: name.
        difference: a - b over the shared items; None where it cannot be computed.
        a: mean over the shared items in the first result.
        b: the same in the second.
        only_a: items that the second result lacks or has no score for.
        only_b: items that the first lacks.
        higher_is_better: direction of the metric.
        reason: why there is no difference.
    """

    task: str
    metric: str
    difference: PairedDifference | None
    a: float | None
    b: float | None
    only_a: int = 0
    only_b: int = 0
    higher_is_better: bool = True
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.task} {self.metric}: no comparison ({self.reason})"
        d = self.difference
        bounds = "" if d.low is None else f" [{d.low:+.4g}, {d.high:+.4g}]"
        p = "" if d.p_value is None else f", p = {d.p_value:.2g}"
        alone = self.only_a + self.only_b
        rest = f", {alone} items without a partner" if alone else ""
        return (
            f"{self.task} {self.metric}: {self.a:.4g} - {self.b:.4g} = {d.difference:+.4g}{bounds}{p}, n = {d.n}{rest}"
        )


@dataclass(frozen=True)
class EvalResult:
    """Results of one model on some tasks.

    Attributes:
        model: folder or hub id.
        tasks: name to result, in the order of the configuration.
        seed: of the evaluation.
        seconds: wall-clock time, model loading included.
        notes: of loading the model.
    """

    model: str
    tasks: dict[str, TaskResult]
    seed: int = 42
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def metric(self, task: str, name: str | None = None) -> MetricValue:
        """A metric of a task; without `name` the headline.

        Raises:
            ValidationError: no such task or metric (those there are are listed).
        """
        if task not in self.tasks:
            raise ValidationError(f"no task '{task}' in this result", hint=f"tasks: {', '.join(self.tasks)}")
        metrics = self.tasks[task].metrics
        if name is None:
            return self.tasks[task].headline
        if name not in metrics:
            raise ValidationError(f"task '{task}' has no metric '{name}'", hint=f"metrics: {', '.join(metrics)}")
        return metrics[name]

    def compare(self, other: EvalResult, confidence: float = 0.95) -> list[Comparison]:
        """`compare(self, other)`."""
        return compare(self, other, confidence)

    def to_dict(self, *, items: bool = False) -> dict[str, Any]:
        """Plain values, ready for JSON; `items` includes every item."""
        return {
            "model": self.model,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "notes": self.notes,
            "tasks": {name: task.to_dict(items=items) for name, task in self.tasks.items()},
        }

    def __str__(self) -> str:
        lines = [f"  {task.name} {metric}" for task in self.tasks.values() for metric in task.metrics.values()]
        return "\n".join([self.model, *lines])

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per task and metric, for a table."""
        return [
            {"task": task.name, "kind": task.kind, **metric.to_dict()}
            for task in self.tasks.values()
            for metric in task.metrics.values()
        ]

    def save(self, folder: str | Path) -> Path:
        """Write `results.json` and the items; returns the path of the former."""
        folder = Path(folder)
        (folder / ITEMS).mkdir(parents=True, exist_ok=True)
        for task in self.tasks.values():
            write_items(folder, task)
        write_json(folder / RESULTS, self.to_dict())
        return folder / RESULTS

    @classmethod
    def load(cls, folder: str | Path) -> EvalResult:
        """Read what `save` wrote.

        Raises:
            ValidationError: the folder holds no results.
        """
        path = Path(folder) / RESULTS
        try:
            raw = json.loads(path.read_bytes())
            tasks = {name: _task(value, Path(folder)) for name, value in raw["tasks"].items()}
            return cls(raw["model"], tasks, raw["seed"], raw["seconds"], raw["notes"])
        except FileNotFoundError as error:
            raise ValidationError(
                f"{folder} holds no {RESULTS}", hint="give a folder that `aligntune eval` wrote"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValidationError(f"{path} is not an evaluation result ({error})", hint="evaluate again") from error


def write_items(folder: Path, task: TaskResult) -> None:
    """Write a task's items to `items/<task>.jsonl`."""
    (folder / ITEMS).mkdir(parents=True, exist_ok=True)
    rewrite_lines(_items_file(folder, task.name), task.items)


def _items_file(folder: Path, task: str) -> Path:
    return (
        folder / ITEMS / f"{task.replace(':', '.')}.jsonl"
    )  # a colon (lm_eval:arc) is no part of file names everywhere


def _task(raw: Mapping[str, Any], folder: Path) -> TaskResult:
    return task_from_dict(raw, read_lines(_items_file(folder, raw["name"])))


def task_from_dict(raw: Mapping[str, Any], items: list[dict[str, Any]]) -> TaskResult:
    """A task's result from what `TaskResult.to_dict` gave, and its items."""
    return TaskResult(
        name=raw["name"],
        kind=raw["kind"],
        metrics={name: MetricValue(**value) for name, value in raw["metrics"].items()},
        items=items,
        settings=raw["settings"],
        notes=raw["notes"],
        seconds=raw["seconds"],
        details=raw.get("details", {}),
    )


def compare(a: EvalResult, b: EvalResult, confidence: float = 0.95) -> list[Comparison]:
    """The paired difference a - b for every task and metric that both results have.

    Raises:
        ValidationError: the results have no task in common.
    """
    shared = [name for name in a.tasks if name in b.tasks]
    if not shared:
        raise ValidationError(
            f"no task in common: {', '.join(a.tasks)} and {', '.join(b.tasks)}",
            hint="evaluate both models with the same file",
        )
    return [
        _compare(a.tasks[name], b.tasks[name], metric, confidence)
        for name in shared
        for metric in a.tasks[name].metrics
        if metric in b.tasks[name].metrics
        and (_has(a.tasks[name].items, "scores", metric) or _has(a.tasks[name].items, "statistics", metric))
    ]


def _has(items: Iterable[Mapping[str, Any]], kind: str, metric: str) -> bool:
    """Whether items carry scores or statistics of the metric (those of perplexity are its `nll`)."""
    return any(metric in item.get(kind, {}) for item in items)


def _compare(a: TaskResult, b: TaskResult, metric: str, confidence: float) -> Comparison:
    if _has(a.items, "statistics", metric):
        return _compare_sums(a, b, metric, confidence)
    first, second = item_means(a.items, metric), item_means(b.items, metric)
    ids = [i for i in first if i in second]
    only_a, only_b = len(first) - len(ids), len(second) - len(ids)
    direction = a.metrics[metric].higher_is_better
    blank = Comparison(a.name, metric, None, None, None, only_a, only_b, direction)
    if not ids:
        return _because(blank, "the results share no scored item")
    xs, ys = [first[i] for i in ids], [second[i] for i in ids]
    weight = a.metrics[metric].weight
    if weight is None:
        difference = paired_difference(xs, ys, confidence)
        return Comparison(a.name, metric, difference, sum(xs) / len(xs), sum(ys) / len(ys), only_a, only_b, direction)
    weights, others = item_means(a.items, metric, weight), item_means(b.items, metric, weight)
    if any(weights[i] != others[i] for i in ids):
        return _because(blank, f"the models count different {weight} in the same rows")
    ws = [weights[i] for i in ids]
    difference = _weighted(xs, ys, ws, confidence)
    mean_a, mean_b = (sum(v * w for v, w in zip(vs, ws, strict=True)) / sum(ws) for vs in (xs, ys))
    return Comparison(a.name, metric, difference, mean_a, mean_b, only_a, only_b, direction)


def _compare_sums(a: TaskResult, b: TaskResult, metric: str, confidence: float) -> Comparison:
    """A metric over summed statistics: the questions that both have are resampled together."""
    from aligntune.eval.config import EvalSettings
    from aligntune.eval.metrics.corpus import CorpusMetric, summed
    from aligntune.eval.registry import EvalRegistry

    known = {f.name for f in fields(EvalSettings)}
    settings = EvalSettings(**{k: v for k, v in a.settings.items() if k in known})
    # Of the items of both: the labels that occur in either decide what is summed.
    measured = EvalRegistry.get(a.kind)().metrics(settings, [*a.items, *b.items])
    found = {m.name: m for m in measured}.get(metric)
    if not isinstance(found, CorpusMetric):
        blank = Comparison(a.name, metric, None, None, None, 0, 0, a.metrics[metric].higher_is_better)
        return _because(blank, f"the kind {a.kind} no longer has this metric")
    sides = [summed(t.items, [found.spread(i.get("statistics", {}).get(metric)) for i in t.items]) for t in (a, b)]
    shared = [i for i in sides[0] if i in sides[1]]
    only_a, only_b = (len(side) - len(shared) for side in sides)
    blank = Comparison(a.name, metric, None, None, None, only_a, only_b, a.metrics[metric].higher_is_better)
    try:
        difference = found.difference(sides[0], sides[1], confidence)
    except ValidationError as e:
        return _because(blank, e.message)
    values = [found.combine([math.fsum(c) for c in zip(*(s[i] for i in shared), strict=True)]) for s in sides]
    return Comparison(
        a.name, metric, difference, values[0], values[1], only_a, only_b, a.metrics[metric].higher_is_better
    )


def _because(blank: Comparison, reason: str) -> Comparison:
    return Comparison(**{**blank.__dict__, "reason": reason})


def _weighted(xs: list[float], ys: list[float], ws: list[float], confidence: float) -> PairedDifference:
    """The weighted mean of differences, as a ratio of sums (`stats.ratio_interval`); no p-value."""
    diffs = [(x - y) * w for x, y, w in zip(xs, ys, ws, strict=True)]
    interval = ratio_interval(diffs, ws, confidence)
    wins, losses = sum(d > 0 for d in diffs), sum(d < 0 for d in diffs)
    return PairedDifference(
        difference=interval.estimate,
        low=interval.low,
        high=interval.high,
        p_value=None,
        n=interval.n,
        wins=wins,
        losses=losses,
        ties=interval.n - wins - losses,
        method="ratio",
        confidence=confidence,
    )


def item_means(items: Iterable[Mapping[str, Any]], metric: str, key: str | None = None) -> dict[str, float]:
    """Id to the mean over its samples: of the metric's score, or of the field `key` where there is a score.

    Args:
        items: of a result.
        metric: whose scores; items without one are left out.
        key: a field to average in place of the score.
    """
    groups: dict[str, list[float]] = {}
    for item in items:
        score = item.get("scores", {}).get(metric)
        if score is not None:
            groups.setdefault(item["id"], []).append(float(score if key is None else item[key]))
    return {i: sum(group) / len(group) for i, group in groups.items()}
