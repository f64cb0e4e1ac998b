"""maj@n: is the answer that most of n samples give the right one? (Wang et al. 2023, arXiv:2203.11171)

>>> items = [{"id": "q", "prediction": p, "reference": "1/2"} for p in ("0.5", "3", "1/2")]
>>> MajorityMetric().compute(items).value
1.0

Answers are equal as mathematics, or as text. A sample without an answer has no vote; of answers with as many votes the
one that was given first wins. Questions without any answer are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from aligntune.eval.metrics.accuracy import AccuracyMetric, MathAccuracyMetric
from aligntune.eval.metrics.base import Item, Metric, MetricValue


class MajorityMetric(Metric):
    """Share of questions whose most frequent answer is right. Values in [0, 1].

    Args:
        match: answer (equal as mathematics) or text.
        name: None is `majority`.
    """

    name = "majority"
    requires = ("prediction", "reference")
    paired = False  # it is no mean over samples

    def __init__(self, match: Literal["answer", "text"] = "answer", name: str | None = None) -> None:
        super().__init__(name)
        self.grader: Metric = AccuracyMetric() if match == "text" else MathAccuracyMetric()
        self.why_missing = self.grader.why_missing

    def score(self, item: Item) -> float | None:
        """Whether this sample is right."""
        return self.grader.score(item)

    def aggregate(self, items: Sequence[Item], scores: Sequence[float | None], confidence: float = 0.95) -> MetricValue:
        """The winner of each question, graded."""
        questions: dict[object, list[Item]] = {}
        for i, item in enumerate(items):
            questions.setdefault(item.get("id", i), []).append(item)
        found = [self._winner(samples) for samples in questions.values()]
        known = [value for value in found if value is not None]
        missing = len(found) - len(known)
        if not known:
            return self.value(None, missing, self.why_missing if items else "there are no items")
        return self.value(self.summarise(known, confidence), missing, self.why_missing if missing else "")

    def _winner(self, samples: Sequence[Item]) -> float | None:
        """Whether the answer with the most votes is right."""
        votes: list[tuple[Item, int]] = []
        for item in samples:
            if item["prediction"] is None:
                continue
            for i, (first, count) in enumerate(votes):
                if self.grader.score({"prediction": item["prediction"], "reference": first["prediction"]}) == 1.0:
                    votes[i] = first, count + 1
                    break
            else:
                votes.append((item, 1))
        return self.score(max(votes, key=lambda vote: vote[1])[0] if votes else samples[0])
