"""Small statistics of the audit: group means, correlations with intervals, ranks, intervals of means by group.

    spearman([1, 2, 3], [1, 4, 9])        # 1.0
    kendall([1, 2, 3], [1, 3, 2])         # 0.333...

Sources: Kendall 1945 (tau-b, for ties); Knight 1966 (counting discordant pairs by sorting); Fisher 1921 (the interval
of a correlation, z = atanh r with variance 1 / (n - 3)). A correlation within groups is that of deviations from the
group's mean, with one degree of freedom less for each group. numpy only.

It corrects for nothing: how many tests are made, and what that means, is the caller's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligntune.rewards.audit.table import Floats, Integers


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are None where there is too little for one."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def group_sums(values: Floats, group: Integers) -> tuple[Floats, Floats]:
    """(G,) sums and (G,) counts of the values that are not NaN, for groups numbered from 0."""
    import numpy as np

    size = int(group.max()) + 1 if len(group) else 0
    there = ~np.isnan(values)
    sums = np.bincount(group[there], weights=values[there], minlength=size).astype(np.float64)
    return sums, np.bincount(group[there], minlength=size).astype(float)


def group_means(values: Floats, group: Integers) -> Floats:
    """(G,) means over the values that are not NaN; NaN for a group without any."""
    import numpy as np

    sums, counts = group_sums(values, group)
    means: Floats = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return means


def centred(values: Floats, group: Integers) -> Floats:
    """(N,) deviations from the group's mean; NaN stays NaN."""
    return values - group_means(values, group)[group]


def group_variances(values: Floats, group: Integers) -> Floats:
    """(G,) variances (n - 1); NaN for groups with fewer than two values."""
    import numpy as np

    _, counts = group_sums(values, group)
    squares, _ = group_sums(centred(values, group) ** 2, group)
    found: Floats = np.divide(squares, counts - 1, out=np.full(len(counts), np.nan), where=counts > 1)
    return found


def group_spans(values: Floats, group: Integers) -> Floats:
    """(G,) largest less smallest value, exact where all are equal; NaN for groups with fewer than two values."""
    import numpy as np

    _, counts = group_sums(values, group)
    there = ~np.isnan(values)
    high, low = np.full(len(counts), -np.inf), np.full(len(counts), np.inf)
    np.maximum.at(high, group[there], values[there])
    np.minimum.at(low, group[there], values[there])
    spans = np.full(len(counts), np.nan)
    several = counts > 1
    spans[several] = high[several] - low[several]
    return spans


def correlation(x: Floats, y: Floats, group: Integers | None = None, confidence: float = 0.95) -> Estimate | None:
    """Pearson's correlation with Fisher's interval; with `group`, of the deviations from the groups' means.

    Only groups in which both vary take part. None where either never varies, or fewer than 4 rows are left.
    """
    import numpy as np

    both = ~(np.isnan(x) | np.isnan(y))
    x, y = x[both], y[both]
    lost = 1
    if group is not None and len(x):
        _, cell = np.unique(group[both], return_inverse=True)
        varies = (np.nan_to_num(group_spans(x, cell)) > 0) & (np.nan_to_num(group_spans(y, cell)) > 0)
        kept, lost = varies[cell], int(varies.sum())
        x, y = centred(x, cell)[kept], centred(y, cell)[kept]
    elif len(x):
        x, y = x - x.mean(), y - y.mean()
    free = len(x) - lost  # what is left after the means were estimated; n - 1 for one group
    scale = math.sqrt(float(x @ x) * float(y @ y)) if len(x) else 0.0
    if free < 3 or scale == 0:
        return None
    r = max(-1.0, min(1.0, float(x @ y) / scale))
    if free < 4:
        return Estimate(r, n=len(x))
    z, half = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r))), NormalDist().inv_cdf(0.5 + confidence / 2)
    width = half / math.sqrt(free - 2)
    return Estimate(r, math.tanh(z - width), math.tanh(z + width), len(x))


def ranks(values: Any) -> Floats:
    """(N,) ranks from 1, the mean rank for ties."""
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    order = np.argsort(x, kind="stable")
    edges = np.flatnonzero(np.concatenate(([True], x[order][1:] != x[order][:-1], [True])))
    middle = (edges[:-1] + edges[1:] + 1) / 2
    found = np.empty(len(x))
    found[order] = np.repeat(middle, np.diff(edges))
    return found


def spearman(x: Any, y: Any) -> float | None:
    """Correlation of ranks; None where either never varies."""
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else None


def kendall(x: Any, y: Any) -> float | None:
    """Kendall's tau-b in O(n log n); None where either never varies."""
    import numpy as np

    _, a = np.unique(np.asarray(x, dtype=np.float64), return_inverse=True)
    _, b = np.unique(np.asarray(y, dtype=np.float64), return_inverse=True)
    n = len(a)
    pairs = n * (n - 1) // 2
    tied_a, tied_b = _tied(a), _tied(b)
    tied_both = _tied(a.astype(np.int64) * (int(b.max(initial=0)) + 1) + b)
    if pairs in (tied_a, tied_b):
        return None
    order = np.lexsort((b, a))  # by x, ties by y: an inversion of y is then a discordant pair
    discordant = _inversions(b[order].tolist())
    concordant_less_discordant = pairs - tied_a - tied_b + tied_both - 2 * discordant
    return float(concordant_less_discordant / math.sqrt((pairs - tied_a) * (pairs - tied_b)))


def _tied(codes: Any) -> int:
    import numpy as np

    _, counts = np.unique(codes, return_counts=True)
    return int((counts.astype(np.int64) * (counts - 1) // 2).sum())


def _inversions(codes: list[int]) -> int:
    """Pairs that stand in descending order, counted with a binary indexed tree."""
    size = max(codes, default=0) + 1
    tree = [0] * (size + 1)
    found = 0
    for seen, code in enumerate(codes):
        not_above, i = 0, code + 1
        while i:
            not_above += tree[i]
            i &= i - 1
        found += seen - not_above
        i = code + 1
        while i <= size:
            tree[i] += 1
            i += i & -i
    return found


def difference(a: Floats, b: Floats, confidence: float) -> Estimate | None:
    """mean(b) - mean(a) of two independent samples, with Welch's interval; None for fewer than two values of either."""
    from aligntune.eval.stats import t_quantile

    if len(a) < 2 or len(b) < 2:
        return None
    va, vb = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    delta, spread = float(b.mean() - a.mean()), va + vb
    if spread == 0:
        return Estimate(delta, delta, delta, len(a) + len(b))
    free = spread**2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = t_quantile(0.5 + confidence / 2, round(max(free, 1.0), 3)) * math.sqrt(spread)
    return Estimate(delta, delta - half, delta + half, len(a) + len(b))
