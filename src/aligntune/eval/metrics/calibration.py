"""Calibration: does a confidence of 0.8 mean right four times in five?

Items carry `confidence` in [0, 1] and `correct`, 0 or 1.

    ECE       sum over bins of (items in bin / items) x |mean correct - mean confidence|, equal-width bins
              (Naeini et al. 2015; 15 bins as in Guo et al. 2017, arXiv:1706.04599, equation 3)
    adaptive  the same with bins of equal count (Nixon et al. 2019, arXiv:1904.01685)
    Brier     mean of (confidence - correct)^2 (Brier 1950)

>>> CalibrationMetric("brier").compute([{"confidence": 0.8, "correct": 1}, {"confidence": 0.6, "correct": 0}]).value
0.2

ECE is biased upwards: with few items even a perfectly calibrated model has an ECE above 0, so `expected_if_calibrated`
gives what such a model would show with the same confidences. For the same reason a bootstrap never covers a true value
near 0. The interval therefore joins that of the bootstrap over items with an inverted test: the gaps of the bins are
multiplied by s from 0 (calibrated) upwards and outcomes are drawn. The lower bound is the smallest true value under
which the observed ECE is not among the 2.5% largest, the upper bound the largest under which it is not among the 2.5%
smallest (each bound inverts a test of one side: Lehmann and Romano 2005, section 3.5). An interval that reaches 0 says
that the model may be calibrated. ECE says nothing about being right: a model that answers with the base rate is
calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.metrics.base import Item, Metric, MetricValue, one_of
from aligntune.eval.metrics.corpus import RESAMPLES, bounds
from aligntune.eval.stats import Interval

Measure = Literal["ece", "adaptive_ece", "brier"]
FACTORS = 81
"""Steps of the inverted test."""
FACTOR_DRAWS = 500
"""Outcomes drawn at each step: their 2.5% quantile lies between the 1.2% and the 4% one."""


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability curve: its bounds, its items, their mean confidence and share of right answers."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


class CalibrationMetric(Metric):
    """ECE, adaptive ECE or the Brier score. Values in [0, 1]; lower is better.

    Args:
        measure: which.
        bins: of ECE (Guo et al. 2017: 15).
        name: None takes the measure's.
        resamples: of the interval of ECE.
        seed: of the resampling.
    """

    requires = ("confidence", "correct")
    higher_is_better = False
    why_missing = "the item has no confidence, or is neither right nor wrong"

    def __init__(
        self,
        measure: Measure = "ece",
        *,
        bins: int = 15,
        name: str | None = None,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        super().__init__(name or measure)
        one_of("calibration", "measure", measure, get_args(Measure))
        if bins < 1:
            raise ConfigurationError(f"calibration has {bins} bins", hint="give a number from 1 up, such as bins=15")
        self.measure, self.bins, self.resamples, self.seed = measure, bins, resamples, seed
        self.paired = measure == "brier"  # only the Brier score is a mean over items

    def score(self, item: Item) -> float | None:
        """(confidence - correct)^2; for ECE it only says whether the item counts."""
        if item["confidence"] is None or item["correct"] is None:
            return None
        confidence, correct = float(item["confidence"]), float(item["correct"])
        if not 0 <= confidence <= 1 or correct not in (0.0, 1.0):
            raise ValidationError(
                f"calibration needs a confidence in [0, 1] and correct 0 or 1, not {confidence:g} and {correct:g}",
                hint="turn scores into probabilities first",
            )
        return (confidence - correct) ** 2

    def aggregate(self, items: Sequence[Item], scores: Sequence[float | None], confidence: float = 0.95) -> MetricValue:
        """The Brier score with Student's t interval, or ECE with the interval that the module describes."""
        if self.measure == "brier":
            return super().aggregate(items, scores, confidence)
        kept = [item for item, score in zip(items, scores, strict=True) if score is not None]
        missing = len(items) - len(kept)
        if not kept:
            return self.value(None, missing, self.why_missing if items else "there are no items")
        import numpy as np

        table = np.array([[float(i["confidence"]), float(i["correct"])] for i in kept])
        draws = self._resampled(table)
        low, high = bounds(draws, confidence, len(kept))
        if low is not None and high is not None:
            least, most = self._inverted(table, confidence)
            low, high = min(low, least), max(high, most)
        interval = Interval(self._error(table), low, high, len(kept), "bootstrap and inverted test", confidence)
        return self.value(interval, missing, self.why_missing if missing else "")

    def expected_if_calibrated(self, items: Sequence[Item]) -> float:
        """Mean of the measure over draws in which each item is right with its own confidence."""
        import numpy as np

        confidences = np.array([float(i["confidence"]) for i in items if i["confidence"] is not None])
        rng = np.random.default_rng(self.seed)
        draws = []
        for _ in range(self.resamples):
            right = (rng.random(len(confidences)) < confidences).astype(float)
            draws.append(self._error(np.stack([confidences, right], axis=1)))
        return math.fsum(draws) / len(draws)

    def _resampled(self, table: Any) -> list[float]:
        """The error of each resample of the items."""
        import numpy as np

        n, rng = len(table), np.random.default_rng(self.seed)
        if self.measure == "adaptive_ece":  # its bins move with the items
            return [self._error(table[rng.integers(n, size=n)]) for _ in range(self.resamples)]
        # n x ECE is the sum over bins of |sum of (correct - confidence)|: one product for a block of resamples.
        gaps = np.zeros((n, self.bins))
        gaps[np.arange(n), _places(table, self.bins)] = table[:, 1] - table[:, 0]
        found: list[float] = []
        block = max(1, 20_000_000 // n)
        for start in range(0, self.resamples, block):
            counts = rng.multinomial(n, [1 / n] * n, size=min(block, self.resamples - start))
            found += (abs(counts @ gaps).sum(axis=1) / n).tolist()
        return found

    def _inverted(self, table: Any, confidence: float) -> tuple[float, float]:
        """The smallest true value under which the observed one is not too large, the largest where not too small."""
        import numpy as np

        found = _bins(table, self.bins, self.measure == "adaptive_ece")
        n, sure, right = (np.array([getattr(b, key) for b in found]) for key in ("n", "confidence", "accuracy"))
        observed = float((n * abs(right - sure)).sum() / n.sum())
        rng = np.random.default_rng(self.seed)
        lows, highs = [observed], [observed]
        for factor in np.linspace(0, 2, FACTORS):
            p = np.clip(sure + factor * (right - sure), 0, 1)
            drawn = rng.binomial(n, p, (min(self.resamples, FACTOR_DRAWS), len(n))) / n
            values = (n * abs(drawn - sure)).sum(axis=1) / n.sum()
            low, high = np.quantile(values, [0.5 - confidence / 2, 0.5 + confidence / 2])
            true = float((n * abs(p - sure)).sum() / n.sum())
            # A test of both sides would exclude 0 for a model whose ECE is smaller than chance makes it.
            if observed <= high:
                lows.append(true)
            if observed >= low:
                highs.append(true)
        return min(lows), max(highs)

    def _error(self, table: Any) -> float:
        if self.measure == "brier":
            return float(((table[:, 0] - table[:, 1]) ** 2).mean())
        gaps = [abs(b.accuracy - b.confidence) * b.n for b in _bins(table, self.bins, self.measure == "adaptive_ece")]
        return math.fsum(gaps) / len(table)


def reliability_curve(items: Sequence[Mapping[str, Any]], bins: int = 15, *, adaptive: bool = False) -> list[Bin]:
    """The bins of ECE that hold items, in order of confidence.

    Args:
        items: with `confidence` and `correct`.
        bins: how many.
        adaptive: of equal count instead of equal width.
    """
    import numpy as np

    rows = [[float(i["confidence"]), float(i["correct"])] for i in items if i["confidence"] is not None]
    return _bins(np.array(rows), bins, adaptive) if rows else []


def _places(table: Any, bins: int) -> Any:
    """The number of each item's bin: (low, high], the first one closed at 0 (Guo et al. 2017)."""
    import numpy as np

    return np.clip(np.ceil(table[:, 0] * bins).astype(int) - 1, 0, bins - 1)


def _bins(table: Any, bins: int, adaptive: bool) -> list[Bin]:
    import numpy as np

    if adaptive:
        ordered = table[np.argsort(table[:, 0], kind="stable")]
        parts = [p for p in np.array_split(ordered, min(bins, len(ordered))) if len(p)]
        edges = [(float(p[0, 0]), float(p[-1, 0])) for p in parts]
    else:
        index = _places(table, bins)
        found = sorted(set(index.tolist()))
        parts = [table[index == i] for i in found]
        edges = [(i / bins, (i + 1) / bins) for i in found]
    return [
        Bin(low, high, len(part), float(part[:, 0].mean()), float(part[:, 1].mean()))
        for (low, high), part in zip(edges, parts, strict=True)
    ]
