"""Metrics of a whole set of items that are not the mean of item scores: perplexity, corpus BLEU, entity F1.

Each item gives a few numbers (its statistics); they are added up over the items and turned into one value. The
interval resamples questions (all samples of one question together) and adds the statistics up again, as Koehn 2004
("Statistical significance tests for machine translation evaluation") does for BLEU.

    class Micro(CorpusMetric):
        name, requires, size = "micro_f1", ("right", "given", "wanted"), 3

        def statistics(self, item):
            return [item["right"], item["given"], item["wanted"]]

        def combine(self, sums):
            right, given, wanted = sums
            return 2 * right / (given + wanted) if given + wanted else None

The statistics are stored with the items (`statistics`), so that two stored results can be compared by resampling the
questions that both answered. It does not weight questions.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

from aligntune.errors import ValidationError
from aligntune.eval.metrics.base import Item, Metric, MetricValue
from aligntune.eval.stats import Interval, PairedDifference, t_quantile

RESAMPLES = 2000
"""Resamples of the questions: the Monte Carlo error of a 95% bound is about 2% of the interval's width."""


class CorpusMetric(Metric):
    """Base of metrics over summed statistics. A subclass writes `statistics` and `combine`.

    Args:
        name: in place of the class's own.
        resamples: of the interval.
        seed: of the resampling.
    """

    paired = False

    def __init__(self, name: str | None = None, *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        super().__init__(name)
        self.resamples, self.seed = resamples, seed

    @abstractmethod
    def statistics(self, item: Item) -> list[Any] | None:
        """The item's numbers; None where it has none."""

    def spread(self, numbers: Any) -> list[float] | None:
        """Stored statistics as the numbers that are summed; a subclass with a shorter stored form expands it."""
        return None if numbers is None else list(numbers)

    @abstractmethod
    def combine(self, sums: Sequence[float]) -> float | None:
        """The value for summed numbers; None where it is undefined."""

    def score(self, item: Item) -> float | None:
        """The value of this item alone."""
        numbers = self.spread(self.statistics(item))
        return None if numbers is None else self.combine(numbers)

    def aggregate(self, items: Sequence[Item], scores: Sequence[float | None], confidence: float = 0.95) -> MetricValue:
        """The value over all items, with a percentile interval over questions."""
        numbers = [self.spread(self.statistics(item)) for item in items]
        table = summed(items, numbers)
        missing = sum(row is None for row in numbers)
        if not table:
            return self.value(None, missing, "there are no items" if not items else self.why_missing)
        value = self.combine([math.fsum(column) for column in zip(*table.values(), strict=True)])
        if value is None:
            return self.value(None, missing, self.why_missing)
        draws = _resampled([list(table.values())], [self], self.resamples, self.seed)[0]
        # Questions that are all alike say nothing about others: no interval, rather than one without width.
        alike = len({tuple(row) for row in table.values()}) == 1
        low, high = (None, None) if alike else bounds(draws, confidence, len(table))
        interval = Interval(value, low, high, len(table), "bootstrap", confidence)
        return replace(self.value(interval, missing, self.why_missing if missing else ""), confidence=confidence)

    def difference(
        self,
        first: Mapping[str, Sequence[float]],
        second: Mapping[str, Sequence[float]],
        confidence: float = 0.95,
    ) -> PairedDifference:
        """Value of `first` minus value of `second` over the questions of both, by resampling the questions.

        Args:
            first: question to statistics, as `summed` gives them.
            second: those of the other model.
            confidence: coverage.

        Raises:
            ValidationError: no question in common, or a value that is undefined.
        """
        ids = [i for i in first if i in second]
        if not ids:
            raise ValidationError("the results share no scored item", hint="evaluate both models on the same data")
        tables = [[list(side[i]) for i in ids] for side in (first, second)]
        values = [self.combine([math.fsum(c) for c in zip(*table, strict=True)]) for table in tables]
        if values[0] is None or values[1] is None:
            raise ValidationError(f"{self.name} is undefined over the shared items", hint=self.why_missing)
        a, b = _resampled(tables, [self, self], self.resamples, self.seed)
        gaps = [x - y for x, y in zip(a, b, strict=True) if x is not None and y is not None]
        low, high = bounds(gaps, confidence, len(ids))
        single = [(self.combine(x), self.combine(y)) for x, y in zip(*tables, strict=True)]
        signs = [(x or 0.0) - (y or 0.0) for x, y in single]
        wins, losses = sum(s > 0 for s in signs), sum(s < 0 for s in signs)
        return PairedDifference(
            difference=values[0] - values[1], low=low, high=high, p_value=two_sided(gaps), n=len(ids),
            wins=wins, losses=losses, ties=len(ids) - wins - losses, method="bootstrap", confidence=confidence,
        )  # fmt: skip


def summed(items: Sequence[Item], numbers: Sequence[Sequence[float] | None]) -> dict[str, list[float]]:
    """Question to its statistics; those of several samples of one question are averaged."""
    groups: dict[str, list[Sequence[float]]] = {}
    for i, (item, row) in enumerate(zip(items, numbers, strict=True)):
        if row is not None:
            groups.setdefault(str(item.get("id", i)), []).append(row)
    return {key: [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)] for key, rows in groups.items()}


def bounds(draws: Sequence[float | None], confidence: float, n: int) -> tuple[float | None, float | None]:
    """Expanded percentile bounds of resampled values; None where most of them are undefined.

    Percentiles of a bootstrap are too narrow for few items: by sqrt((n - 1) / n), and as the normal distribution is
    against Student's t. Hesterberg 2015 (arXiv:1411.5279) takes those at Phi(-sqrt(n / (n - 1)) t) instead.

    Args:
        draws: values over resamples.
        confidence: coverage.
        n: items that were resampled, at least 2 for an interval.
    """
    import numpy as np

    if n < 2:
        return None, None
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * t_quantile(0.5 + confidence / 2, n - 1))
    known = [d for d in draws if d is not None and math.isfinite(d)]
    if len(known) < 0.5 * len(draws) or not known:
        return None, None
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def two_sided(gaps: Sequence[float]) -> float | None:
    """Two-sided p-value of a bootstrap: twice the smaller share of resamples on one side of zero, never 0."""
    if not gaps:
        return None
    below, above = sum(g <= 0 for g in gaps), sum(g >= 0 for g in gaps)
    return min(1.0, 2 * (min(below, above) + 1) / (len(gaps) + 1))


def _resampled(tables: list[list[list[float]]], metrics: list[Any], count: int, seed: int) -> list[list[float | None]]:
    """Values of each table under the same draws of rows, in blocks that bound memory."""
    import numpy as np

    rows = len(tables[0])
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(table, dtype=np.float64) for table in tables]
    out: list[list[float | None]] = [[] for _ in tables]
    block = max(1, 20_000_000 // max(rows, 1))
    for start in range(0, count, block):
        size = min(block, count - start)
        # How often each row is drawn: the sums are then one product.
        draws = rng.multinomial(rows, [1 / rows] * rows, size=size).astype(np.float64)
        for values, array, metric in zip(out, arrays, metrics, strict=True):
            values.extend(metric.combine(sums) for sums in (draws @ array).tolist())
    return out
