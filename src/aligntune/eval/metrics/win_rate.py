"""Win rate against another model's answers, by a judge that saw both orders, or by two scores.

Items carry either `first` and `second` (the verdicts with our answer shown first, and with it shown second), each
"win", "loss" or "tie" from our side, or None where the judge gave none; or `score` and `other_score`.

    score of an item = 1 win, 0.5 tie, 0 loss

A judge prefers the position of an answer as well as its content (Zheng et al. 2023, arXiv:2306.05685, section 3.3):
verdicts that turn with the order count as a tie, as there. One verdict that is missing leaves the item out.

>>> WinRateMetric().compute([{"first": "win", "second": "win"}, {"first": "win", "second": "loss"}]).value
0.75
"""

from __future__ import annotations

from collections.abc import Iterable

from aligntune.errors import ValidationError
from aligntune.eval.metrics.base import Item, Metric
from aligntune.eval.stats import Interval, wilson_interval

POINTS = {"win": 1.0, "tie": 0.5, "loss": 0.0}


class WinRateMetric(Metric):
    """Share of items that are won, ties as one half. Values in [0, 1]; 0.5 is even.

    Args:
        by: verdicts (of a judge, in both orders) or scores (of a reward).
        name: of the metric.
    """

    name = "win_rate"

    def __init__(self, by: str = "verdicts", name: str | None = None) -> None:
        super().__init__(name)
        if by not in ("verdicts", "scores"):
            raise ValidationError(f"a win rate by '{by}' is unknown", hint="by='verdicts' or by='scores'")
        self.by = by
        self.requires = ("first", "second") if by == "verdicts" else ("score", "other_score")
        self.why_missing = "the judge gave no verdict" if by == "verdicts" else "one of the answers has no score"

    def score(self, item: Item) -> float | None:
        """1, 0.5 or 0; None where a verdict or a score is missing."""
        a, b = (item[field] for field in self.requires)
        if a is None or b is None:
            return None
        if self.by == "scores":
            return 0.5 if a == b else float(a > b)
        for verdict in (a, b):
            if verdict not in POINTS:
                raise ValidationError(f"a verdict is {verdict!r}", hint=f"one of {', '.join(POINTS)}")
        return POINTS[a] if a == b else 0.5

    def summarise(self, scores: list[float], confidence: float) -> Interval:  # type: ignore[override]
        """Wilson's interval, a tie as half a success."""
        return wilson_interval(sum(scores), len(scores), confidence)


def consistency(items: Iterable[Item]) -> float | None:
    """Share of items on which a judge gave the same verdict in both orders; None without any pair of verdicts."""
    pairs = [(i["first"], i["second"]) for i in items if i["first"] is not None and i["second"] is not None]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None
