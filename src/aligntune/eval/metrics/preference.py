"""Preference pairs: how often the chosen answer scores above the rejected one, and by how much.

Items carry two scores; which ones is said at construction. With the implicit reward of DPO (Rafailov et al. 2023,
arXiv:2305.18290), beta (log p(y|x) - log p_ref(y|x)) summed over the answer, the two metrics are TRL's
`rewards/accuracies` and `rewards/margins`.

>>> PreferenceAccuracyMetric().compute([{"chosen": 1.0, "rejected": 0.0}, {"chosen": 0.0, "rejected": 0.0}]).value
0.75

A tie counts one half (TRL counts it as wrong), so that a model which cannot tell the answers apart has 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

from aligntune.eval.metrics.base import Item, Metric
from aligntune.eval.stats import Interval, wilson_interval


class PreferenceAccuracyMetric(Metric):
    """Share of pairs whose chosen answer has the higher score; ties count one half. Values in [0, 1].

    Args:
        chosen: field of the chosen answer's score.
        rejected: field of the rejected answer's score.
        name: of the metric.
    """

    name = "preference_accuracy"
    why_missing = "a score of the pair is missing"

    def __init__(self, chosen: str = "chosen", rejected: str = "rejected", name: str | None = None) -> None:
        super().__init__(name)
        self.requires = (chosen, rejected)

    def score(self, item: Item) -> float | None:
        """1, 0.5 or 0; None where a score is missing."""
        chosen, rejected = (item[field] for field in self.requires)
        if chosen is None or rejected is None:
            return None
        return 0.5 if chosen == rejected else float(chosen > rejected)

    def summarise(self, scores: Sequence[float], confidence: float) -> Interval:
        """Wilson's interval, a tie as half a success."""
        return wilson_interval(sum(scores), len(scores), confidence)


class RewardAccuracyMetric(PreferenceAccuracyMetric):
    """Share of pairs whose chosen answer a reward or reward model scores higher (RewardBench, arXiv:2403.13787).

    Ties count one half. Values in [0, 1].
    """

    name = "reward_accuracy"

    def __init__(self, chosen: str = "chosen_score", rejected: str = "rejected_score", name: str | None = None) -> None:
        super().__init__(chosen, rejected, name)


class RewardMarginMetric(PreferenceAccuracyMetric):
    """Mean of chosen minus rejected score, with Student's t interval."""

    name = "reward_margin"

    def score(self, item: Item) -> float | None:
        """chosen - rejected; None where a score is missing."""
        chosen, rejected = (item[field] for field in self.requires)
        return None if chosen is None or rejected is None else float(chosen - rejected)

    def summarise(self, scores: Sequence[float], confidence: float) -> Interval:
        """Student's t interval."""
        return Metric.summarise(self, scores, confidence)
