"""Which label was taken for which: counts of right and predicted labels, as a table that a page can draw.

>>> confusion_of([{"reference": "a", "prediction": "b"}, {"reference": "a", "prediction": "a"}]).rows
[('a', [1, 1], 2), ('b', [0, 0], 0)]

Up to `MOST_LABELS` labels make a table; of more, only the commonest mistakes are told. Labels are those that occur.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_LABELS = 24
MOST_MISTAKES = 12
LONGEST_LABEL = 60


@dataclass(frozen=True)
class Confusion:
    """Counts of one task.

    Attributes:
        labels: columns of the table, sorted; empty where there are too many.
        rows: right label, how often each label was predicted for it, and its items.
        mistakes: right label, predicted label, count: the commonest first.
        n: items.
        names: how many labels occur.
    """

    labels: list[str]
    rows: list[tuple[str, list[int], int]]
    mistakes: list[tuple[str, str, int]]
    n: int
    names: int

    def shade(self, count: int, total: int) -> int:
        """Strength of a cell's colour, 0 to 9, by its share of the row."""
        return 0 if not count or not total else max(1, round(9 * count / total))


def confusion_of(items: Sequence[Mapping[str, Any]]) -> Confusion | None:
    """The confusion of a task's items; None where they have no labels, or each its own.

    Items have `reference` and `prediction`, or `tags` and `predicted_tags` (then the tag `O` for `O` is left out, which
    would outnumber everything).
    """
    pairs = list(_pairs(items))
    counts = Counter(pairs)
    names = sorted({label for pair in counts for label in pair})
    if len(pairs) < 2 or len(names) < 2 or len(names) > len(pairs):
        return None
    rows = []
    if len(names) <= MOST_LABELS:
        for gold in names:
            row = [counts[gold, label] for label in names]
            rows.append((gold, row, sum(row)))
    wrong = Counter({pair: n for pair, n in counts.items() if pair[0] != pair[1]})
    mistakes = [(*pair, n) for pair, n in sorted(wrong.items(), key=lambda x: (-x[1], x[0]))[:MOST_MISTAKES]]
    return Confusion(names if rows else [], rows, mistakes, len(pairs), len(names))


def _pairs(items: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    for item in items:
        if isinstance(item.get("tags"), list) and isinstance(item.get("predicted_tags"), list):
            for gold, tag in zip(item["tags"], item["predicted_tags"], strict=False):
                if (gold, tag) != ("O", "O"):
                    yield _label(gold), _label(tag)
        elif isinstance(item.get("reference"), str) and isinstance(item.get("prediction"), str):
            yield _label(item["reference"]), _label(item["prediction"])


def _label(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_LABEL else f"{text[:LONGEST_LABEL]}…"
