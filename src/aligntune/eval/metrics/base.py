"""What a metric is: a score for each item, and one number with an interval over all of them.

An item is a mapping with the fields that the metric names in `requires`, and `id`, the question it belongs to. Several
items with one id (samples of one prompt) are averaged first, because they are not independent.

    class Shouting(Metric):
        name = "shouting"
        requires = ("output",)

        def score(self, item):
            return float(item["output"].isupper())

    Shouting().compute([{"output": "A"}, {"output": "b"}]).value    # 0.5, with Wilson's interval

An item that cannot be scored gives None; it is left out and counted in `missing`, and a metric without any score has
the value None and the reason. Nothing is ever 0 because it could not be computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.stats import Interval, proportion_or_mean
from aligntune.registry import nearest

Item = Mapping[str, Any]


@dataclass(frozen=True)
class MetricValue:
    """A metric over a task's items.

    Attributes:
        name: of the metric.
        value: the number; None where no item could be scored.
        low: lower bound of the confidence interval; None where there is none.
        high: upper bound.
        n: items with a score (samples of one prompt count once).
        missing: samples without a score.
        method: of the interval.
        confidence: coverage of the interval.
        higher_is_better: direction.
        weight: field that weights items in the mean (`tokens`), or None.
        reason: why items are missing, or why there is no value.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    missing: int = 0
    method: str = ""
    confidence: float = 0.95
    higher_is_better: bool = True
    weight: str | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name}: no value ({self.reason})"
        bounds = "" if self.low is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return (
            f"{self.name}: {self.value:.4g}{bounds} (n={self.n}{f', {self.missing} missing' if self.missing else ''})"
        )


def one_of(metric: str, parameter: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse a parameter of a metric that is none of the known values.

    Raises:
        ConfigurationError: it is another; the nearest is named.
    """
    if value not in known:
        raise ConfigurationError(
            f"the metric {metric} has no {parameter} {value!r}", hint=nearest(str(value), [str(one) for one in known])
        )


class Metric(ABC):
    """Base of all metrics. A subclass sets the attributes and writes `score`.

    Args:
        name: in place of the class's own, for two metrics of one class.
    """

    name: str = ""
    requires: tuple[str, ...] = ()
    higher_is_better: bool = True
    weight: ClassVar[str | None] = None
    paired: bool = True
    """Whether the mean of the scores is the metric, so that two models can be compared item by item."""
    why_missing: str = "the item has no score"

    def __init__(self, name: str | None = None) -> None:
        self.name = name or self.name

    @abstractmethod
    def score(self, item: Item) -> float | None:
        """The item's score; None where it has none."""

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """One score per item.

        Raises:
            ValidationError: an item lacks a required field.
        """
        for i, item in enumerate(items):
            lacking = [field for field in self.requires if field not in item]
            if lacking:
                raise ValidationError(
                    f"item {i} lacks '{lacking[0]}', which {self.name or type(self).__name__} needs; "
                    f"it has {', '.join(map(str, item)) or 'nothing'}",
                    hint="map the column in the data set's column_mapping, or choose another metric",
                )
        return [self.score(item) for item in items]

    def compute(
        self, items: Iterable[Any], confidence: float = 0.95, *, references: Iterable[Any] | None = None
    ) -> MetricValue:
        """Score the items and sum them up.

        Args:
            items: with the fields of `requires`; or predictions, where references are given.
            confidence: of the interval.
            references: as many as predictions.

        Raises:
            ValidationError: an item lacks a field, or there are more of one than of the other.
        """
        rows = list(items)
        if references is not None:
            golds = list(references)
            if len(golds) != len(rows):
                raise ValidationError(
                    f"{len(rows)} predictions and {len(golds)} references",
                    hint="give one for each prediction",
                )
            rows = [{"prediction": p, "reference": r} for p, r in zip(rows, golds, strict=True)]
        return self.aggregate(rows, self.scores(rows), confidence)

    def aggregate(self, items: Sequence[Item], scores: Sequence[float | None], confidence: float = 0.95) -> MetricValue:
        """One value from scores that `scores` gave."""
        groups: dict[Any, list[float]] = {}
        for i, (item, score) in enumerate(zip(items, scores, strict=True)):
            if score is not None:
                groups.setdefault(item.get("id", i), []).append(float(score))
        missing = sum(score is None for score in scores)
        if not groups:
            return self.value(None, missing, "there are no items" if not items else self.why_missing)
        means = [sum(group) / len(group) for group in groups.values()]
        return self.value(self.summarise(means, confidence), missing, self.why_missing if missing else "")

    def summarise(self, scores: Sequence[float], confidence: float) -> Interval:
        """The interval over one score per question: Wilson's where all are 0 or 1, Student's t otherwise."""
        return proportion_or_mean(scores, confidence)

    def value(self, interval: Interval | None, missing: int, reason: str = "") -> MetricValue:
        """A MetricValue of this metric; `interval` None means that there is no value."""
        number = interval or Interval(0.0, None, None, 0, "")
        return MetricValue(
            name=self.name,
            value=None if interval is None else number.estimate,
            low=number.low,
            high=number.high,
            n=number.n,
            missing=missing,
            method=number.method,
            confidence=number.confidence,
            higher_is_better=self.higher_is_better,
            weight=self.weight,
            reason=reason,
        )


class MeanMetric(Metric):
    """The mean of one numeric field.

    Args:
        field: of the items.
        name: None takes the field's.
        higher_is_better: direction.
    """

    def __init__(self, field: str, name: str | None = None, *, higher_is_better: bool = True) -> None:
        super().__init__(name or field)
        self.field = field
        self.requires = (field,)
        self.higher_is_better = higher_is_better

    def score(self, item: Item) -> float | None:
        """The field as a number; None stays None."""
        number = item[self.field]
        return None if number is None else float(number)
