"""Intervals that hold where training goes wrong: a value that is not finite has none, in place of an error.

>>> mean_of([1.0, math.nan])
Interval(estimate=nan, low=None, high=None, n=2, method='t', confidence=0.95)

The evaluations of a training run take these; a finished evaluation counts such items as missing instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aligntune.eval.stats import Interval, mean_interval, ratio_interval


def mean_of(values: Sequence[float]) -> Interval:
    """The mean with Student's t interval; without one where a value is not finite, as in a run that has diverged."""
    if all(map(math.isfinite, values)):
        return mean_interval(values)
    return Interval(sum(values) / len(values), None, None, len(values), "t")


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """`ratio_interval`; without bounds where a numerator is not finite."""
    if all(map(math.isfinite, numerators)):
        return ratio_interval(numerators, denominators)
    return Interval(sum(numerators) / sum(denominators), None, None, len(numerators), "ratio")


def mapped_exp(interval: Interval) -> Interval:
    """The exponential of a value and its bounds (nats per token to perplexity), finite up to exp(700)."""

    def exp(x: float | None) -> float | None:
        return None if x is None else math.exp(min(x, 700.0))

    estimate = math.exp(min(interval.estimate, 700.0))
    return Interval(estimate, exp(interval.low), exp(interval.high), interval.n, interval.method, interval.confidence)


def clipped(interval: Interval, least: float = -math.inf, most: float = math.inf) -> Interval:
    """An interval with value and bounds inside a range that the quantity cannot leave."""

    def clip(x: float | None) -> float | None:
        return None if x is None else min(max(x, least), most)

    estimate = min(max(interval.estimate, least), most)
    return Interval(estimate, clip(interval.low), clip(interval.high), interval.n, interval.method, interval.confidence)
