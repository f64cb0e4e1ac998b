"""Uncertainty of evaluation scores: intervals, paired differences, exact tests.

Pure functions over sequences of numbers, one number per item. Sources: Wilson 1927 (score interval); Newcombe 1998,
"Improved confidence intervals for the difference between binomial proportions based on paired data", Statistics in
Medicine 17:2635 (method 10); McNemar 1947 in its exact form; Cochran 1977, section 6.5 (ratio estimator);
Miller 2024, arXiv:2411.00640 (why paired, why clustered by item). Standard library only, except the bootstrap (numpy).

>>> wilson_interval(49, 100)
Interval(estimate=0.49, low=0.3942..., high=0.5865..., n=100, method='wilson', confidence=0.95)
>>> paired_difference([1, 1, 0, 1], [0, 1, 0, 0]).difference
0.5

A score of several samples per item is averaged over the item first, because samples of one item are not independent.
It does not correct for multiple comparisons, and "the interval contains zero" does not mean that two models are equal.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

from aligntune.errors import ValidationError

BOOTSTRAP_RESAMPLES = 10_000
"""Resamples of a percentile bootstrap: the Monte Carlo error of a 95% bound is then under 1% of its width."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    `low` and `high` are None where no interval exists (fewer than two items for a mean); nothing stands in for it.
    """

    estimate: float
    low: float | None
    high: float | None
    n: int
    method: str
    confidence: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `a - b` over the items both were scored on.

    `wins`, `losses` and `ties` count items where a is above, below, equal to b. `p_value` is two-sided: exact McNemar
    for 0/1 scores, Student's t on the differences otherwise; None where it cannot be computed.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    wins: int
    losses: int
    ties: int
    method: str
    confidence: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion: the p for which |p_hat - p| <= z sqrt(p (1 - p) / n).

    Args:
        successes: how many of `n` succeeded; a tie may count as one half.
        n: trials, at least 1.
        confidence: coverage in (0, 1).

    Raises:
        ValidationError: no trials, or successes outside [0, n].
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValidationError(
            f"cannot form a proportion from {successes} of {n}",
            hint="pass at least one item, and a count between 0 and the number of items",
        )
    low, high = _wilson(successes, n, _z(confidence))
    return Interval(successes / n, low, high, n, "wilson", confidence)


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, *, method: Literal["t", "bootstrap"] = "t", seed: int = 0
) -> Interval:
    """Mean of `values` with Student's t interval, or the percentile bootstrap (Efron and Tibshirani 1993, ch. 13).

    Raises:
        ValidationError: no values, or a value that is not finite.
    """
    _check_confidence(confidence)
    xs = _finite(values)
    mean = math.fsum(xs) / len(xs)
    if len(xs) < 2:
        return Interval(mean, None, None, len(xs), method, confidence)
    if method == "bootstrap":
        low, high = _bootstrap(xs, confidence, seed)
    else:
        half = t_quantile(0.5 + confidence / 2, len(xs) - 1) * _sd(xs, mean) / math.sqrt(len(xs))
        low, high = mean - half, mean + half
    return Interval(mean, low, high, len(xs), method, confidence)


def proportion_or_mean(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Wilson's interval when every value is 0 or 1, Student's t interval otherwise."""
    xs = _finite(values)
    if _binary(xs):
        return wilson_interval(sum(xs), len(xs), confidence)
    return mean_interval(xs, confidence)


def welch_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """mean(a) - mean(b) of two independent samples (Welch 1947); no bounds where one has a single value, or no spread.

    Raises:
        ValidationError: no values.
    """
    _check_confidence(confidence)
    means = [sum(xs) / len(xs) for xs in (a, b)] if a and b else _finite([])
    gap, n = means[0] - means[1], len(a) + len(b)
    if min(len(a), len(b)) < 2 or not all(map(math.isfinite, (*a, *b))):
        return Interval(gap, None, None, n, "welch", confidence)
    parts = [_sd(list(xs), mean) ** 2 / len(xs) for xs, mean in zip((a, b), means, strict=True)]
    if not sum(parts):
        return Interval(gap, None, None, n, "welch", confidence)
    df = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    df = max(df, min(len(a), len(b)) - 1)  # its lower limit, which rounding may miss
    half = t_quantile(0.5 + confidence / 2, df) * math.sqrt(sum(parts))
    return Interval(gap, gap - half, gap + half, n, "welch", confidence)


def auc_interval(good: Sequence[float], bad: Sequence[float], confidence: float = 0.95) -> Interval:
    """The chance that one of `good` is larger than one of `bad`, ties counting half, with DeLong's interval.

    Var = var_i(share of `bad` below good_i) / m + var_j(share of `good` above bad_j) / n (DeLong, DeLong and
    Clarke-Pearson 1988, Biometrics 44:837), on the logit scale, which keeps the bounds in (0, 1) (Pepe 2003, section
    5.2). No bounds where a side has a single value, or where the sides do not overlap: the variance is unknown then.

    Raises:
        ValidationError: a side without values.
    """
    _check_confidence(confidence)
    if not good or not bad:
        _finite([])
    m, n = len(good), len(bad)
    if any(map(math.isnan, (*good, *bad))):
        return Interval(math.nan, None, None, m + n, "delong", confidence)
    wins = _shares_below(good, bad)
    losses = _shares_below(bad, good)
    value = math.fsum(wins) / m
    if min(m, n) < 2 or not 0 < value < 1 or not all(map(math.isfinite, (*good, *bad))):
        return Interval(value, None, None, m + n, "delong", confidence)
    variance = _sd(wins, value) ** 2 / m + _sd(losses, 1 - value) ** 2 / n
    half = _z(confidence) * math.sqrt(variance) / (value * (1 - value))
    low, high = (1 / (1 + (1 - value) / value * math.exp(-half * sign)) for sign in (-1, 1))
    return Interval(value, low, high, m + n, "delong", confidence)


def _shares_below(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """For each x the share of `ys` below it, ties counting half."""
    ordered = sorted(ys)
    return [(bisect_left(ordered, x) + bisect_right(ordered, x)) / (2 * len(ordered)) for x in xs]


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], confidence: float = 0.95) -> Interval:
    """The ratio sum(numerators) / sum(denominators) with a t interval that treats each row as one draw.

    Used for token-weighted likelihood: numerators are summed negative log-likelihoods of rows, denominators their
    token counts. Variance: sum (y_i - r x_i)^2 / (n (n - 1) mean(x)^2) (Cochran 1977, equation 6.13).

    Raises:
        ValidationError: no rows, different lengths, or a total denominator that is not positive.
    """
    _check_confidence(confidence)
    ys, xs = _finite(numerators), _finite(denominators)
    _same_length(ys, xs)
    total = math.fsum(xs)
    if total <= 0:
        raise ValidationError(
            f"the denominators sum to {total}", hint="at least one row needs a positive count (a scored token)"
        )
    n, ratio = len(ys), math.fsum(ys) / total
    if n < 2:
        return Interval(ratio, None, None, n, "ratio", confidence)
    squares = math.fsum((y - ratio * x) ** 2 for y, x in zip(ys, xs, strict=True))
    se = math.sqrt(squares / (n * (n - 1))) / (total / n)
    half = t_quantile(0.5 + confidence / 2, n - 1) * se
    return Interval(ratio, ratio - half, ratio + half, n, "ratio", confidence)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    confidence: float = 0.95,
    *,
    method: Literal["auto", "t", "newcombe", "bootstrap"] = "auto",
    seed: int = 0,
) -> PairedDifference:
    """Mean of `a[i] - b[i]` with an interval, for two models scored on the same items in the same order.

    Args:
        a: scores of the first model, one per item.
        b: scores of the second model on the same items.
        confidence: coverage in (0, 1).
        method: auto takes Newcombe's score interval when all scores are 0 or 1, Student's t otherwise;
            bootstrap resamples items (percentile).
        seed: of the bootstrap.

    Raises:
        ValidationError: no items, different lengths, or Newcombe's method for scores that are not 0 or 1.
    """
    _check_confidence(confidence)
    xs, ys = _finite(a), _finite(b)
    _same_length(xs, ys)
    diffs = [x - y for x, y in zip(xs, ys, strict=True)]
    n, wins, losses = len(diffs), sum(d > 0 for d in diffs), sum(d < 0 for d in diffs)
    binary = _binary(xs) and _binary(ys)
    if method == "newcombe" and not binary:
        raise ValidationError(
            "Newcombe's interval needs scores of 0 or 1", hint="use method='t' or method='bootstrap' for real scores"
        )
    chosen = ("newcombe" if binary else "t") if method == "auto" else method
    mean = math.fsum(diffs) / n
    p_value = mcnemar_exact(wins, losses) if binary else paired_t_test(diffs)
    low: float | None
    high: float | None
    if chosen == "newcombe":
        both = sum(x == 1 and y == 1 for x, y in zip(xs, ys, strict=True))
        low, high = newcombe_paired(both, wins, losses, n - both - wins - losses, confidence)
    else:
        interval = mean_interval(diffs, confidence, method="bootstrap" if chosen == "bootstrap" else "t", seed=seed)
        low, high = interval.low, interval.high
    return PairedDifference(mean, low, high, p_value, n, wins, losses, n - wins - losses, chosen, confidence)


def newcombe_paired(both: int, first: int, second: int, neither: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of (first - second) / n for paired proportions: Newcombe 1998, method 10.

    Args:
        both: items that both models solved.
        first: items that only the first solved.
        second: items that only the second solved.
        neither: items that none solved.
        confidence: coverage in (0, 1).
    """
    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    z = _z(confidence)
    low1, high1 = _wilson(both + first, n, z)
    low2, high2 = _wilson(both + second, n, z)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    # The continuity correction of method 10 shrinks a positive correlation only.
    corrected = max(cross - n / 2, 0.0) if cross > 0 else cross
    phi = corrected / math.sqrt(margins) if margins else 0.0
    down1, up1, down2, up2 = p1 - low1, high1 - p1, p2 - low2, high2 - p2
    below = math.sqrt(max(0.0, down1**2 - 2 * phi * down1 * up2 + up2**2))
    above = math.sqrt(max(0.0, up1**2 - 2 * phi * up1 * down2 + down2**2))
    return p1 - p2 - below, p1 - p2 + above


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided exact p-value that the discordant pairs split evenly: 2 P(X <= min), X ~ Binomial(wins + losses, 1/2).

    1.0 when no pair differs.
    """
    n, k = wins + losses, min(wins, losses)
    if n == 0:
        return 1.0
    log_half = -n * math.log(2)
    tail = math.fsum(
        math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + log_half) for i in range(k + 1)
    )
    return min(1.0, 2 * tail)


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p-value that the mean difference is zero (Student's t); None for fewer than two items.

    Differences that are all equal leave no variance: 1.0 when they are zero, else 0.0, the limit of the statistic.
    """
    xs = _finite(differences)
    if len(xs) < 2:
        return None
    mean = math.fsum(xs) / len(xs)
    sd = _sd(xs, mean)
    if sd == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * (1 - t_cdf(abs(mean) / (sd / math.sqrt(len(xs))), len(xs) - 1))


def t_cdf(t: float, df: float) -> float:
    """Distribution function of Student's t with `df` degrees of freedom, through the incomplete beta function."""
    tail = 0.5 * _beta_regularised(df / (df + t * t), df / 2, 0.5)
    return 1 - tail if t >= 0 else tail


@lru_cache(maxsize=256)
def t_quantile(p: float, df: float) -> float:
    """Inverse of `t_cdf`, by bisection to 1e-12 relative.

    Raises:
        ValidationError: p outside (0, 1) or df below 1.
    """
    if not 0 < p < 1 or df < 1:
        raise ValidationError(f"no t quantile for p={p}, df={df}", hint="p must lie in (0, 1) and df be at least 1")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 2.0
    while t_cdf(high, df) < p:
        high *= 2
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def _beta_regularised(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta I_x(a, b) by its continued fraction (DLMF 8.17.22, modified Lentz)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_regularised(1 - x, b, a)
    front = math.exp(
        a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - math.log(a)
    )
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            step = c * d
            fraction *= step
        if abs(step - 1) < 1e-15:
            break
    return front * fraction


def _wilson(successes: float, n: int, z: float) -> tuple[float, float]:
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At p = 0 and p = 1 the bound is exactly p; rounding must not carry it past the estimate.
    return (0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half))


def _bootstrap(xs: list[float], confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bounds of the resampled mean; resamples in blocks so that memory stays under about 100 MB."""
    import numpy as np

    data, rng = np.asarray(xs), np.random.default_rng(seed)
    block = max(1, 10_000_000 // len(xs))
    means: list[Any] = []
    for start in range(0, BOOTSTRAP_RESAMPLES, block):
        size = min(block, BOOTSTRAP_RESAMPLES - start)
        means.append(data[rng.integers(len(xs), size=(size, len(xs)))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _sd(xs: list[float], mean: float) -> float:
    return math.sqrt(math.fsum((x - mean) ** 2 for x in xs) / (len(xs) - 1))


def _binary(xs: Sequence[float]) -> bool:
    return all(x in (0, 1) for x in xs)


def _finite(values: Sequence[float]) -> list[float]:
    xs = [float(v) for v in values]
    if not xs:
        raise ValidationError("no values to summarise", hint="score at least one item")
    bad = next((i for i, x in enumerate(xs) if not math.isfinite(x)), None)
    if bad is not None:
        raise ValidationError(
            f"value {bad} is {xs[bad]}, not a finite number", hint="leave items without a score out, and count them"
        )
    return xs


def _same_length(a: Sequence[float], b: Sequence[float]) -> None:
    if len(a) != len(b):
        raise ValidationError(
            f"paired values differ in number: {len(a)} and {len(b)}", hint="pass scores of the same items, in order"
        )


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValidationError(f"confidence {confidence} is not between 0 and 1", hint="use 0.95 for a 95% interval")
