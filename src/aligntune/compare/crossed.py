"""Scores of the same items under several training seeds: one difference, of which both are samples.

    gaps[s][i] = score of the arm - score of the first arm, seed s, item i          (k seeds, n items)
    standard error^2 = var(means of the seeds) / k + var(means of the items) / n,  Student's t with k - 1 degrees

Averaging over the seeds and comparing items alone would take the luck of a few training runs for a property of the arm:
three runs each of two equal arms, whose accuracies on 200 items vary by 10 points from run to run, are then called
different in 56 of 100 comparisons. Here that is at most 5: the seeds' part alone gives the t-test of the seeds, and the
items' part makes the error larger, never smaller. The noise of single scores is in both parts.

>>> crossed([[1, 0, 1, 0], [0, 0, 1, 1]]).mean
0.5

Seeds that agree on every item vary nothing, and one seed says nothing about others: both are the caller's to see.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from aligntune.eval.significance import Equivalence, Verdict
from aligntune.eval.stats import t_cdf, t_quantile


@dataclass(frozen=True)
class Crossed:
    """A mean difference over seeds and items.

    Attributes:
        mean: of all gaps.
        of_seeds: the seeds' part of the squared standard error.
        of_items: the items' part.
        k: seeds.
        n: items.
    """

    mean: float
    of_seeds: float
    of_items: float
    k: int
    n: int

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.of_seeds + self.of_items)

    @property
    def p_value(self) -> float:
        """Two-sided, of no difference."""
        if not self.error:
            return float(self.mean == 0)
        return 2 * (1 - t_cdf(abs(self.mean) / self.error, self.k - 1))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Bounds of the difference for other training seeds and other items."""
        half = t_quantile(0.5 + confidence / 2, self.k - 1) * self.error
        return self.mean - half, self.mean + half

    def tost(self, margin: float, alpha: float = 0.05) -> Equivalence:
        """Two one-sided t-tests against -margin and +margin (Schuirmann 1987).

        `needed` is the number of items at which a true difference of zero would be called equivalent with 80% power;
        None where these seeds are too few for any number of items.
        """
        if self.error:
            below = 1 - t_cdf((self.mean + margin) / self.error, self.k - 1)
            above = t_cdf((self.mean - margin) / self.error, self.k - 1)
        else:
            below, above = float(self.mean <= -margin), float(self.mean >= margin)
        p, p_different = max(below, above), self.p_value
        verdict: Verdict = "equivalent" if p < alpha else "different" if p_different < alpha else "undecided"
        low, high = self.interval(1 - 2 * alpha)
        needed = self._needed(margin, alpha)
        return Equivalence(verdict, self.mean, low, high, margin, p, p_different, self.n, needed, alpha)

    def _needed(self, margin: float, alpha: float, power: float = 0.8) -> int | None:
        reach = t_quantile(1 - alpha, self.k - 1) + t_quantile((1 + power) / 2, self.k - 1)
        left = (margin / reach) ** 2 - self.of_seeds
        return math.ceil(self.of_items * self.n / left) if left > 0 else None


def crossed(gaps: Sequence[Sequence[float]]) -> Crossed:
    """The mean difference of at least two seeds (rows) and two items (columns), with both parts of its error."""
    k, n = len(gaps), len(gaps[0])
    rows = [math.fsum(row) / n for row in gaps]
    columns = [math.fsum(column) / k for column in zip(*gaps, strict=True)]
    return Crossed(math.fsum(rows) / k, statistics.variance(rows) / k, statistics.variance(columns) / n, k, n)
