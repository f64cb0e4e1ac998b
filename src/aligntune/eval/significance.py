"""Decisions about differences: equivalence, effect size, several tasks, several seeds, and how many items it takes.

    tost([0.01, -0.02, ...], margin=0.01)           are two models the same within one point?
    adjust([0.01, 0.04, 0.03])                      Holm: p-values of several tasks together
    minimum_detectable(0.6, n=500, agreement=0.8)   the difference that 500 items can show
    across_seeds([[...], [...]])                    mean over seeds, with the spread between them

Pure functions. Sources: Schuirmann 1987 (two one-sided tests); Holm 1979; Benjamini and Hochberg 1995; Cohen 1988
(d for paired differences); Connor 1987 (sample size for McNemar's test); Miller 2024, arXiv:2411.00640, section 5.

A difference that is not significant is no proof of equality: that takes `tost`, with a margin stated beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

from aligntune.errors import ValidationError
from aligntune.eval.stats import Interval, mcnemar_exact, mean_interval, t_cdf, t_quantile

Verdict = Literal["equivalent", "different", "undecided"]


@dataclass(frozen=True)
class Equivalence:
    """Outcome of two one-sided tests.

    Attributes:
        verdict: equivalent (within the margin), different (the difference is not zero, and equivalence is not shown),
            or undecided (neither is shown: more items are needed).
        difference: mean of the paired differences.
        low: lower bound of the interval with coverage 1 - 2 alpha, which must lie inside the margin.
        high: upper bound.
        margin: as stated.
        p_value: the larger of the two one-sided p-values.
        p_different: two-sided p-value of a difference of zero.
        n: items.
        needed: items at which a true difference of zero would be called equivalent with 80% power, with this variance;
            None where it cannot be said.
        alpha: level.
    """

    verdict: Verdict
    difference: float
    low: float
    high: float
    margin: float
    p_value: float
    p_different: float
    n: int
    needed: int | None
    alpha: float = 0.05

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        what = {
            "equivalent": f"equivalent within {self.margin:g}",
            "different": "different",
            "undecided": "not enough data" + (f": about {self.needed} items needed" if self.needed else ""),
        }[self.verdict]
        return f"{what} ({self.difference:+.4g} [{self.low:+.4g}, {self.high:+.4g}], n = {self.n})"


def tost(differences: Sequence[float], margin: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided t-tests of paired differences against -margin and +margin.

    Its rate of false equivalence is at most alpha where the true difference is on the margin (Schuirmann 1987).

    Args:
        differences: one per item (or per seed), in the metric's units.
        margin: largest difference that does not matter; positive, chosen before looking.
        alpha: level of each one-sided test.

    Raises:
        ValidationError: fewer than two differences, or a margin that is not positive.
    """
    if not margin > 0:
        raise ValidationError(f"the margin is {margin:g}", hint="state the largest difference that does not matter")
    interval = mean_interval(differences, 1 - 2 * alpha)
    if interval.low is None or interval.high is None:
        raise ValidationError("equivalence needs at least two items", hint="evaluate on more items")
    n, mean = interval.n, interval.estimate
    half = (interval.high - interval.low) / 2
    se = half / t_quantile(1 - alpha, n - 1)
    if se == 0:
        p_lower, p_upper, p_zero = float(mean <= -margin), float(mean >= margin), float(mean == 0)
    else:
        p_lower = 1 - t_cdf((mean + margin) / se, n - 1)
        p_upper = t_cdf((mean - margin) / se, n - 1)
        p_zero = 2 * (1 - t_cdf(abs(mean) / se, n - 1))
    p = max(p_lower, p_upper)
    verdict: Verdict = "equivalent" if p < alpha else "different" if p_zero < alpha else "undecided"
    needed = _needed(se * math.sqrt(n), margin, alpha)
    return Equivalence(verdict, mean, interval.low, interval.high, margin, p, p_zero, n, needed, alpha)


def _needed(sd: float, margin: float, alpha: float, power: float = 0.8) -> int | None:
    """Items for a true difference of zero: n = ((z_{1-alpha} + z_{(1+power)/2}) sd / margin)^2."""
    if sd == 0:
        return None
    z = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf((1 + power) / 2)
    return math.ceil((z * sd / margin) ** 2)


def equivalent_proportions(
    both: int, first: int, second: int, neither: int, margin: float, alpha: float = 0.05
) -> Equivalence:
    """As `tost` for answers that are right or wrong: Tango's score test (Statistics in Medicine 17:891, 1998).

    A t-test is too sure of itself where few pairs differ. The rate of false equivalence of this one, summed exactly
    over all outcomes, is at most 0.05 for 50 to 500 items and 6 to 60% of pairs that differ.

    Args:
        both: items that both models solved.
        first: items that only the first solved.
        second: items that only the second solved.
        neither: items that none solved.
        margin: positive, in units of the proportion.
        alpha: level of each one-sided test.

    Raises:
        ValidationError: no items, or a margin outside (0, 1).
    """
    n = both + first + second + neither
    if not 0 < margin < 1 or n < 1:
        raise ValidationError(f"no equivalence of {n} items within {margin:g}", hint="the margin lies in (0, 1)")
    normal = NormalDist()
    p_value = max(normal.cdf(_tango(first, second, n, margin)), 1 - normal.cdf(_tango(first, second, n, -margin)))
    z = normal.inv_cdf(1 - alpha)
    low, high = (_tango_bound(first, second, n, side * z) for side in (1, -1))
    p_different = mcnemar_exact(first, second)
    verdict: Verdict = "equivalent" if p_value < alpha else "different" if p_different < alpha else "undecided"
    # With no pair that differs, one that might have is the most that the data speak for.
    needed = _needed(math.sqrt(max(first + second, 1) / n), margin, alpha)
    return Equivalence(verdict, (first - second) / n, low, high, margin, p_value, p_different, n, needed, alpha)


def _tango(first: int, second: int, n: int, delta: float) -> float:
    """Score statistic of a difference of `delta`: standard normal where that is the true difference."""
    gap = first - second - n * delta
    linear = -first - second + (2 * n - first + second) * delta
    root = math.sqrt(max(linear**2 + 8 * n * second * delta * (1 - delta), 0.0))
    variance = n * ((root - linear) / (2 * n) + delta * (1 - delta))
    if variance <= 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def _tango_bound(first: int, second: int, n: int, z: float) -> float:
    """The difference at which the statistic, which falls with it, is `z`; by bisection."""
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _tango(first, second, n, middle) > z else (low, middle)
    return (low + high) / 2


def effect_size(differences: Sequence[float]) -> float | None:
    """Cohen's d of paired differences: mean / standard deviation (d_z); None without variance or with one item.

    By Cohen's own words 0.2 is small, 0.5 medium, 0.8 large.
    """
    n = len(differences)
    if n < 2:
        return None
    mean = math.fsum(differences) / n
    sd = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    return mean / sd if sd else None


def adjust(p_values: Sequence[float | None], method: Literal["holm", "bh"] = "holm") -> list[float | None]:
    """p-values corrected for being several, in their order; None stays None and does not count.

    Args:
        p_values: of the tests of one question (one metric on several tasks).
        method: holm keeps the chance of any false positive at alpha under any dependence (Holm 1979); bh the expected
            share of false ones among the positives (Benjamini and Hochberg 1995).
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    m = len(known)
    out: list[float | None] = [None] * len(p_values)
    best = 0.0 if method == "holm" else 1.0
    ranked = list(enumerate(known)) if method == "holm" else list(enumerate(known))[::-1]
    for rank, (p, i) in ranked:
        best = max(best, (m - rank) * p) if method == "holm" else min(best, p * m / (rank + 1))
        out[i] = min(1.0, best)
    return out


def minimum_detectable(
    p: float, n: int, *, agreement: float | None = None, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Smallest difference of two proportions that a comparison on n items finds with this power.

    delta = (z_{1-alpha/2} + z_power) sqrt(variance / n). For two models on the same items the variance of a difference
    is the share of items on which they disagree (McNemar under a small difference; Connor 1987); without `agreement`
    the items are taken as independent, which is the worst case short of contradiction: 2 p (1 - p).

    Args:
        p: expected proportion, in (0, 1).
        n: items, at least 1.
        agreement: expected share of items on which both are right or both are wrong, in [0, 1].
        alpha: level of the two-sided test.
        power: wanted.

    Returns:
        A difference in (0, 1]; 1 where n is too small for any.
    """
    if not 0 < p < 1 or n < 1:
        raise ValidationError(f"no detectable difference for p={p:g}, n={n}", hint="p lies in (0, 1), n is at least 1")
    variance = 2 * p * (1 - p) if agreement is None else 1 - agreement
    z = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    return min(1.0, z * math.sqrt(max(variance, 0.0) / n))


def detectable_mean(sd: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """As `minimum_detectable` for a mean of paired differences with standard deviation `sd`, in its units."""
    if n < 1 or sd < 0:
        raise ValidationError(f"no detectable difference for sd={sd:g}, n={n}", hint="sd >= 0 and n >= 1")
    return (NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)) * sd / math.sqrt(n)


@dataclass(frozen=True)
class SeedSummary:
    """A value over several training seeds.

    Attributes:
        interval: mean over seeds with Student's t interval on the seeds; what another training run would give.
        between: standard deviation between seeds.
        within: mean standard error of one seed's own value over items.
        values: one per seed.
    """

    interval: Interval
    between: float | None
    within: float | None
    values: list[float]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)


def across_seeds(scores: Sequence[Sequence[float]], confidence: float = 0.95) -> SeedSummary:
    """Mean over seeds of each seed's mean over items.

    The interval takes the seeds as the sample: it says where another run's value may be, for these items.

    Args:
        scores: for each seed, its scores of the items.
        confidence: coverage.

    Raises:
        ValidationError: no seeds, or a seed without items.
    """
    means = [mean_interval(list(row)) for row in scores]
    values = [m.estimate for m in means]
    interval = mean_interval(values, confidence)
    errors = [
        math.sqrt(math.fsum((x - m.estimate) ** 2 for x in row) / (len(row) - 1) / len(row))
        for row, m in zip(scores, means, strict=True)
        if len(row) > 1
    ]
    between = None
    if len(values) > 1:
        between = math.sqrt(math.fsum((v - interval.estimate) ** 2 for v in values) / (len(values) - 1))
    return SeedSummary(interval, between, math.fsum(errors) / len(errors) if errors else None, values)
