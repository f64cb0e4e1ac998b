"""Macro F1 over labels, and accuracy over the tags of sentences.

    F1 of a label = 2 right / (given + wanted)
    macro F1      = its mean over the labels that are wanted or given, each counted once (scikit-learn's default)

>>> pairs = [("a", "a"), ("a", "b"), ("b", "b")]
>>> MacroF1Metric(["a", "b"]).compute([{"reference": g, "prediction": p} for g, p in pairs]).value
0.6666666666666666

A prediction of None is no label, and wrong. The interval resamples rows (a sentence with all its tags together). In a
resample a label that does not occur is left out of its mean, so few rows of many labels give a wide interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aligntune.eval.metrics.base import Item
from aligntune.eval.metrics.corpus import RESAMPLES, CorpusMetric
from aligntune.eval.metrics.likelihood import TokenMeanMetric


class MacroF1Metric(CorpusMetric):
    """Macro F1, in [0, 1].

    Args:
        labels: all that occur in the items, gold or predicted.
        gold: field with the right label, or the list of a sentence's tags.
        predicted: field with the model's.
        name: of the metric.
        resamples: of the interval.
        seed: of the resampling.
    """

    name = "f1_macro"
    why_missing = "the row has no label"

    def __init__(
        self,
        labels: Iterable[str],
        gold: str = "reference",
        predicted: str = "prediction",
        *,
        name: str | None = None,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        super().__init__(name, resamples=resamples, seed=seed)
        self.index = {label: i for i, label in enumerate(sorted(set(labels)))}
        self.requires = (gold, predicted)

    def statistics(self, item: Item) -> list[Any] | None:
        """Pairs of gold and predicted label."""
        gold, predicted = (item[field] for field in self.requires)
        if gold is None:
            return None
        one = isinstance(gold, str)
        return [list(pair) for pair in zip(*(([gold], [predicted]) if one else (gold, predicted)), strict=True)]

    def spread(self, numbers: Any) -> list[float] | None:
        """Right, given and wanted of each label."""
        if numbers is None:
            return None
        counts = [0.0] * (3 * len(self.index))
        for gold, predicted in numbers:
            counts[3 * self.index[gold] + 2] += 1
            if predicted is not None:
                counts[3 * self.index[predicted] + 1] += 1
                counts[3 * self.index[predicted]] += gold == predicted
        return counts

    def combine(self, sums: Sequence[float]) -> float | None:
        """The mean over the labels that occur."""
        thirds = zip(sums[0::3], sums[1::3], sums[2::3], strict=True)
        values = [2 * right / (given + wanted) for right, given, wanted in thirds if given + wanted]
        return math.fsum(values) / len(values) if values else None


class TagAccuracyMetric(TokenMeanMetric):
    """Share of tags that are right, in [0, 1]; the interval treats sentences as independent, not tags.

    Items carry `tags`, `predicted_tags` and `words`, their number.
    """

    name = "accuracy"
    weight = "words"
    requires = ("tags", "predicted_tags", "words")
    why_missing = "the sentence has no word"

    def total(self, item: Item) -> tuple[float, int]:
        """Right tags, and tags."""
        right = sum(a == b for a, b in zip(item["tags"], item["predicted_tags"], strict=True))
        return float(right), item["words"]


def labels_in(items: Iterable[Mapping[str, Any]], *names: str) -> set[str]:
    """The labels in these fields of the items, each a label or a list of tags."""
    found: set[str] = set()
    for item in items:
        for name in names:
            value = item.get(name)
            found.update([value] if isinstance(value, str) else (tag for tag in value or () if tag is not None))
    return found
