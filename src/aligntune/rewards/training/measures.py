"""Numbers that a reward model is judged by: rank correlations, calibration, length slopes, best-of-n.

Pure functions over sequences of numbers. Sources: Kendall 1945 (tau-b), computed as Knight 1966 does in O(n log n);
Brier 1950; Guo et al. 2017, arXiv:1706.04599 (expected calibration error); Field and Welsh 2007 (bootstrap by cluster).

>>> kendall([1, 2, 3, 4], [1, 3, 2, 4])
0.6666666666666666
>>> best_of([0.9, 0.1], [1.0, 0.0], 2)
1.0

Answers to one prompt are not independent, so intervals resample prompts, or treat a prompt as one draw. A correlation
with a constant is undefined, and None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aligntune.eval.stats import Interval, mean_interval, ratio_interval, wilson_interval

RESAMPLES = 2000
"""Resamples of prompts: the Monte Carlo error of a 95% bound is under 3% of the interval's width."""


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, ties sharing their mean rank."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found = [0.0] * len(values)
    at = 0
    while at < len(order):
        end = at
        while end + 1 < len(order) and values[order[end + 1]] == values[order[at]]:
            end += 1
        for i in order[at : end + 1]:
            found[i] = (at + end) / 2 + 1
        at = end + 1
    return found


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """The product-moment correlation in [-1, 1]; None for fewer than two items or a constant."""
    n = len(xs)
    if n < 2:
        return None
    mean_x, mean_y = math.fsum(xs) / n, math.fsum(ys) / n
    xx = math.fsum((x - mean_x) ** 2 for x in xs)
    yy = math.fsum((y - mean_y) ** 2 for y in ys)
    if xx <= 1e-24 * max(1.0, mean_x * mean_x) * n or yy <= 1e-24 * max(1.0, mean_y * mean_y) * n:
        return None
    xy = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return max(-1.0, min(1.0, xy / math.sqrt(xx * yy)))


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks."""
    return pearson(ranks(xs), ranks(ys))


def kendall(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """tau-b: (concordant - discordant) / sqrt((pairs - ties in x)(pairs - ties in y)); None for a constant."""
    n = len(xs)
    pairs = n * (n - 1) // 2
    order = sorted(range(n), key=lambda i: (xs[i], ys[i]))
    tied_x, tied_both = _tied([xs[i] for i in order]), _tied([(xs[i], ys[i]) for i in order])
    tied_y = _tied(sorted(ys))
    if pairs - tied_x <= 0 or pairs - tied_y <= 0:
        return None
    _, discordant = _inversions([ys[i] for i in order])
    total = pairs - tied_x - tied_y + tied_both - 2 * discordant
    return total / math.sqrt((pairs - tied_x) * (pairs - tied_y))


def _tied(ordered: Sequence[Any]) -> int:
    """Pairs of equal neighbours in a sorted sequence."""
    total, run = 0, 1
    for i in range(1, len(ordered) + 1):
        if i < len(ordered) and ordered[i] == ordered[i - 1]:
            run += 1
        else:
            total += run * (run - 1) // 2
            run = 1
    return total


def _inversions(values: list[float]) -> tuple[list[float], int]:
    """The sorted values, and how many pairs stand in the wrong order."""
    if len(values) < 2:
        return values, 0
    middle = len(values) // 2
    left, a = _inversions(values[:middle])
    right, b = _inversions(values[middle:])
    merged, count, i, j = [], a + b, 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            count += len(left) - i
            j += 1
    return [*merged, *left[i:], *right[j:]], count


def proportion(wins: Sequence[float], prompts: Sequence[str]) -> Interval:
    """Mean of `wins` (0, 0.5 or 1): Wilson's interval where each prompt has one (or all have the same mean), else
    each prompt is one draw of a ratio."""
    sums = grouped(wins, prompts)
    means = [total / n for n, total in sums.values()]
    if all(n == 1 for n, _ in sums.values()) or len(set(means)) == 1:  # without a spread a t interval would be a point
        return wilson_interval(sum(means), len(means))
    found = ratio_interval([total for _, total in sums.values()], [n for n, _ in sums.values()])
    low = None if found.low is None else max(found.low, 0.0)
    high = None if found.high is None else min(found.high, 1.0)
    return Interval(found.estimate, low, high, found.n, "by prompt", found.confidence)


def grouped(values: Sequence[float], prompts: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Prompt to (number of values, their sum), in order of appearance."""
    sums: dict[str, tuple[int, float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        n, total = sums.get(prompt, (0, 0.0))
        sums[prompt] = n + 1, total + value
    return sums


def _moments(xs: Sequence[float], ys: Sequence[float], prompts: Sequence[str], seed: int) -> tuple[Any, Any]:
    """Sums n, x, y, xx, yy, xy of the whole (6,) and of resamples of prompts (RESAMPLES, 6), about the means."""
    import numpy as np

    index = {key: i for i, key in enumerate(dict.fromkeys(prompts))}
    rows = np.asarray([index[key] for key in prompts])
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    x, y = x - x.mean(), y - y.mean()
    sums = np.zeros((len(index), 6))
    for column, values in enumerate((np.ones_like(x), x, y, x * x, y * y, x * y)):
        np.add.at(sums[:, column], rows, values)
    drawn = np.random.default_rng(seed).multinomial(len(index), [1 / len(index)] * len(index), size=RESAMPLES)
    return sums.sum(axis=0), drawn @ sums


def _centred(sums: Any) -> tuple[Any, Any, Any]:
    n, x, y, xx, yy, xy = (sums[..., i] for i in range(6))
    return xx - x * x / n, yy - y * y / n, xy - x * y / n


def _percentiles(estimate: float, drawn: Any, n: int) -> Interval:
    import numpy as np

    kept = drawn[np.isfinite(drawn)]
    if n < 3 or len(kept) < len(drawn) / 2:
        return Interval(estimate, None, None, n, "bootstrap by prompt")
    low, high = np.quantile(kept, [0.025, 0.975])
    return Interval(estimate, float(low), float(high), n, "bootstrap by prompt")


def correlation_interval(
    xs: Sequence[float], ys: Sequence[float], prompts: Sequence[str], *, kind: str = "pearson", seed: int = 0
) -> Interval | None:
    """A correlation with its 95% interval; `n` is the number of prompts. None where it is undefined.

    Args:
        xs, ys: two values of each answer.
        prompts: each answer's prompt.
        kind: pearson or spearman (prompts are resampled; ranks are those of the whole), or kendall (Fisher's z with the
            standard error sqrt(0.437 / (n - 4)) of Fieller et al. 1957, n the number of prompts).
        seed: of the bootstrap.
    """
    import numpy as np

    estimate = {"pearson": pearson, "spearman": spearman, "kendall": kendall}[kind](xs, ys)
    if estimate is None:
        return None
    count = len(set(prompts))
    if kind == "kendall":
        if count < 5 or abs(estimate) == 1:
            return Interval(estimate, None, None, count, "fisher z")
        half = 1.959963984540054 * math.sqrt(0.437 / (count - 4))
        z = math.atanh(estimate)
        return Interval(estimate, math.tanh(z - half), math.tanh(z + half), count, "fisher z")
    a, b = (ranks(xs), ranks(ys)) if kind == "spearman" else (xs, ys)
    _, drawn = _moments(a, b, prompts, seed)
    xx, yy, xy = _centred(drawn)
    with np.errstate(all="ignore"):
        return _percentiles(estimate, np.clip(xy / np.sqrt(xx * yy), -1, 1), count)


def slope_interval(
    xs: Sequence[float], ys: Sequence[float], prompts: Sequence[str], *, seed: int = 0
) -> Interval | None:
    """The least-squares slope of y on x, prompts resampled; None where x is constant."""
    import numpy as np

    if pearson(xs, xs) is None:
        return None
    whole, drawn = _moments(xs, ys, prompts, seed)
    xx, _, xy = _centred(whole)
    with np.errstate(all="ignore"):
        some, _, both = _centred(drawn)
        return _percentiles(float(xy / xx), both / some, len(set(prompts)))


# ---- calibration -----------------------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def brier(gaps: Sequence[float], prompts: Sequence[str]) -> Interval:
    """Mean of (1 - sigmoid(gap))^2 over pairs; 0.25 for a model that says 0.5 to everything."""
    sums = grouped([(1 - sigmoid(g)) ** 2 for g in gaps], prompts)
    return mean_interval([total / n for n, total in sums.values()])


def reliability(gaps: Sequence[float], bins: int = 5) -> list[dict[str, Any]]:
    """How often the model is right, by how sure it is: equal bins of max(p, 1 - p) over [0.5, 1]; empty ones left out.

    Each has `low`, `high`, `pairs`, `confidence` (mean), `accuracy` with its Wilson `interval`.
    """
    cells: dict[int, list[tuple[float, float]]] = {}
    for gap in gaps:
        sure = sigmoid(abs(gap))
        right = 0.5 if gap == 0 else float(gap > 0)
        cells.setdefault(min(int((sure - 0.5) * 2 * bins), bins - 1), []).append((sure, right))
    found = []
    for i, items in sorted(cells.items()):
        accuracy = wilson_interval(sum(r for _, r in items), len(items))
        found.append(
            {
                "low": 0.5 + i / (2 * bins),
                "high": 0.5 + (i + 1) / (2 * bins),
                "pairs": len(items),
                "confidence": math.fsum(s for s, _ in items) / len(items),
                "accuracy": accuracy.estimate,
                "interval": [accuracy.low, accuracy.high],
            }
        )
    return found


def calibration_error(gaps: Sequence[float], bins: int = 5) -> float:
    """Expected calibration error: the mean of |accuracy - confidence| over `reliability`'s bins, by their pairs."""
    cells = reliability(gaps, bins)
    return math.fsum(c["pairs"] * abs(c["accuracy"] - c["confidence"]) for c in cells) / len(gaps)


def calibration_interval(gaps: Sequence[float], prompts: Sequence[str], *, seed: int = 0) -> Interval:
    """`calibration_error`, prompts resampled 300 times.

    It is at least 0, and a small sample makes it too large, a resample larger still: the lower bound is therefore
    never above the estimate.
    """
    import numpy as np

    groups: dict[str, list[float]] = {}
    for gap, prompt in zip(gaps, prompts, strict=True):
        groups.setdefault(prompt, []).append(gap)
    rows, rng = list(groups.values()), np.random.default_rng(seed)
    drawn = np.asarray(
        [calibration_error([g for i in rng.integers(len(rows), size=len(rows)) for g in rows[i]]) for _ in range(300)]
    )
    found = _percentiles(calibration_error(gaps), drawn, len(rows))
    return found if found.low is None else replace(found, low=min(found.low, found.estimate))


def temperature(gaps: Sequence[float]) -> float | None:
    """The T > 0 for which sigmoid(gap / T) has the highest likelihood; None where no pair, or every pair, is right.

    The likelihood is concave in 1/T, so that the sign of its derivative brackets the maximum.
    """
    if not gaps or all(g >= 0 for g in gaps) or math.fsum(gaps) <= 0:
        return None

    def slope(inverse: float) -> float:
        return math.fsum(g * sigmoid(-g * inverse) for g in gaps)

    low, high = 0.0, 1.0
    while slope(high) > 0:
        low, high = high, high * 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 2 / (low + high)


# ---- best of n -------------------------------------------------------------------------------------------------


def best_of(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Mean value of the answer that scores highest among n of N, over all draws of n; tied scores share it.

    With the answers in order of score, the one of rank i (from 1) is the best of C(i - 1, n - 1) of C(N, n) draws.
    """
    total = len(scores)
    order = sorted(range(total), key=lambda i: scores[i])
    mean = {i: values[i] for i in order}
    at = 0
    while at < total:  # ties: each stands for the mean of its block
        block = [i for i in order[at:] if scores[i] == scores[order[at]]]
        share = math.fsum(values[i] for i in block) / len(block)
        mean |= dict.fromkeys(block, share)
        at += len(block)
    draws = math.comb(total, n)
    return math.fsum(math.comb(rank, n - 1) / draws * mean[i] for rank, i in enumerate(order))
