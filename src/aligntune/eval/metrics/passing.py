"""pass@k: the chance that at least one of k samples is right, estimated from n >= k samples.

    pass@k = 1 - C(n - c, k) / C(n, k)    averaged over problems; c of a problem's n samples are right

(Chen et al. 2021, arXiv:2107.03374, equation 1). It is unbiased; 1 - (1 - c/n)^k is not.

>>> pass_at_k(n=4, c=1, k=2)
0.5

Items carry `correct` (0 or 1) and `id`, the problem. Samples must be drawn independently, so not by beam search or
greedily.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aligntune.errors import ValidationError
from aligntune.eval.metrics.base import Item, Metric, MetricValue


def pass_at_k(n: int, c: int, k: int) -> float:
    """The estimator for one problem.

    Args:
        n: samples.
        c: right ones, in [0, n].
        k: in [1, n].

    Raises:
        ValidationError: k above n, or a count out of range.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValidationError(
            f"pass@{k} cannot be estimated from {c} of {n} samples", hint="draw num_samples >= k answers per prompt"
        )
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


class PassAtKMetric(Metric):
    """pass@k over problems, with Student's t interval (Wilson's where every problem has 0 or 1). Values in [0, 1].

    A problem with fewer than k samples is left out and counted.

    Args:
        k: at least 1.
        field: of the items that says whether a sample is right (0 or 1).
        name: None is `pass@k`.
    """

    def __init__(self, k: int = 1, field: str = "correct", name: str | None = None) -> None:
        super().__init__(name or f"pass@{k}")
        if k < 1:
            raise ValidationError(f"pass@{k} has no meaning", hint="k is at least 1")
        self.k, self.field, self.requires = k, field, (field,)
        self.why_missing = f"the problem has fewer than {k} scored samples"
        self.paired = k == 1  # for larger k the mean of the samples is another number

    def score(self, item: Item) -> float | None:
        """Whether this sample is right."""
        right = item[self.field]
        if right is None:
            return None
        if float(right) not in (0.0, 1.0):
            raise ValidationError(f"pass@{self.k} needs 0 or 1, not {right}", hint="say which score counts as right")
        return float(right)

    def aggregate(self, items: Sequence[Item], scores: Sequence[float | None], confidence: float = 0.95) -> MetricValue:
        """The mean of the estimator over problems."""
        problems: dict[object, list[float]] = {}
        for i, (item, score) in enumerate(zip(items, scores, strict=True)):
            group = problems.setdefault(item.get("id", i), [])
            if score is not None:
                group.append(score)
        values = [pass_at_k(len(g), int(sum(g)), self.k) for g in problems.values() if len(g) >= self.k]
        short = sum(len(g) < self.k for g in problems.values())
        if not values:
            return self.value(None, short, self.why_missing if items else "there are no items")
        return self.value(self.summarise(values, confidence), short, self.why_missing if short else "")
