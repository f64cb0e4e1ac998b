"""Several models on the same tasks: one table of paired differences, corrected for being several, and what changed.

    rows = compare_all([before, after, other], margin=0.02)
    print(rows[0])       # arc accuracy  after - before: +0.031 [+0.004, +0.058], p = 0.02 (0.06 corrected), d = 0.1
    changed_items(before, after, "arc")[:5]

Each model is compared with the first. p-values of the tasks' headline metrics are corrected together by Holm's method
over all tasks and models; the other metrics keep their own, since they say the same in other words. With a margin each
difference gets a verdict: equivalent within the margin, different, or not enough data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from aligntune.errors import ValidationError
from aligntune.eval.result import Comparison, EvalResult, TaskResult, compare, item_means
from aligntune.eval.significance import (
    Equivalence,
    adjust,
    detectable_mean,
    effect_size,
    equivalent_proportions,
    minimum_detectable,
    tost,
)


@dataclass(frozen=True)
class Row:
    """One metric of one task for a model against the first one.

    Attributes:
        model: the model.
        against: the first model.
        comparison: model - against over the shared items.
        headline: whether it is its task's first metric.
        p_adjusted: Holm's p-value over the headlines of all tasks and models; None for other metrics.
        effect: Cohen's d of the paired differences.
        equivalence: the verdict, where a margin is stated.
    """

    model: str
    against: str
    comparison: Comparison
    headline: bool
    p_adjusted: float | None = None
    effect: float | None = None
    equivalence: Equivalence | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        text = str(self.comparison)
        if self.p_adjusted is not None and self.comparison.difference is not None:
            text += f", corrected p = {self.p_adjusted:.2g}"
        if self.effect is not None:
            text += f", d = {self.effect:+.2f}"
        return text + (f": {self.equivalence}" if self.equivalence else "")


def compare_all(results: Sequence[EvalResult], *, margin: float | None = None, confidence: float = 0.95) -> list[Row]:
    """Every model after the first against the first.

    Args:
        results: at least two; tasks that only one has are left out.
        margin: largest difference that does not matter, in the metrics' units.
        confidence: of the intervals.

    Raises:
        ValidationError: one result only, or no task in common.
    """
    if len(results) < 2:
        raise ValidationError("a comparison takes at least two results", hint="name two models or two result folders")
    first, rows = results[0], []
    for other in results[1:]:
        for comparison in compare(other, first, confidence):
            pair = (other.tasks[comparison.task], first.tasks[comparison.task])
            gaps = _gaps(*pair, comparison.metric)
            rows.append(
                Row(
                    other.model,
                    first.model,
                    comparison,
                    headline=comparison.metric == pair[1].headline.name,
                    effect=effect_size([a - b for a, b in gaps]),
                    equivalence=None if margin is None else _equivalence(gaps, margin),
                )
            )
    known = [r.comparison.difference.p_value if r.headline and r.comparison.difference else None for r in rows]
    return [replace(row, p_adjusted=p) for row, p in zip(rows, adjust(known), strict=True)]


def _gaps(a: TaskResult, b: TaskResult, metric: str) -> list[tuple[float, float]]:
    """Scores of the shared items; none for a metric that is no mean of item scores."""
    first, second = item_means(a.items, metric), item_means(b.items, metric)
    return [(first[i], second[i]) for i in first if i in second]


def _equivalence(gaps: Sequence[tuple[float, float]], margin: float) -> Equivalence | None:
    if len(gaps) < 2:
        return None
    if all(x in (0, 1) for pair in gaps for x in pair):
        both, first, second, neither = (gaps.count(cell) for cell in ((1, 1), (1, 0), (0, 1), (0, 0)))
        return equivalent_proportions(both, first, second, neither, margin)
    return tost([a - b for a, b in gaps], margin)


def changed_items(a: EvalResult, b: EvalResult, task: str, metric: str | None = None) -> list[dict[str, Any]]:
    """Items whose score differs between two results, the largest change first.

    Args:
        a: the result that is compared.
        b: the one that it is compared with.
        task: of both.
        metric: None takes the headline.

    Returns:
        Rows with `id`, `prompt`, `reference`, `before` and `after` (scores in b and a), `before_output` and
        `after_output`.
    """
    name = metric or a.metric(task).name
    scores = [item_means(r.tasks[task].items, name) for r in (b, a)]
    items = [_first(r.tasks[task].items) for r in (b, a)]
    rows = []
    for i, before in scores[0].items():
        after = scores[1].get(i)
        if after is None or after == before:
            continue
        old, new = items[0][i], items[1][i]
        rows.append({
            "id": i, "prompt": new.get("prompt"), "reference": new.get("reference"), "before": before, "after": after,
            "before_output": _said(old), "after_output": _said(new),
        })  # fmt: skip
    return sorted(rows, key=lambda row: -abs(row["after"] - row["before"]))


def _first(items: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Id to its first sample."""
    found: dict[str, Mapping[str, Any]] = {}
    for item in items:
        found.setdefault(item["id"], item)
    return found


def _said(item: Mapping[str, Any]) -> Any:
    return item.get("output", item.get("prediction"))


def detectable(n: int, *, binary: bool = True) -> str:
    """One sentence on the smallest difference that a comparison on n items finds, for reading before it is made."""
    if not binary:
        return f"{n} items: a comparison finds a difference of {detectable_mean(1.0, n):.2g} standard deviations"
    worst, close = minimum_detectable(0.5, n), minimum_detectable(0.5, n, agreement=0.8)
    return (
        f"{n} items: a comparison of two models finds a difference of {worst:.2g} with 80% power "
        f"({close:.2g} if they agree on 80% of the items)"
    )
