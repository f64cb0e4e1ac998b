"""Entity F1 over sentences: right entities have the same type and the same words (`aligntune.eval.entities`).

>>> EntityF1Metric().compute([{"tags": ["B-PER", "O"], "predicted_tags": ["B-PER", "O"]}]).value
1.0

    precision = right / given    recall = right / wanted    F1 = 2 right / (given + wanted)

each summed over the sentences (micro, as seqeval's defaults); the interval resamples sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from aligntune.eval.entities import OUTSIDE, find_entities
from aligntune.eval.metrics.base import Item, one_of
from aligntune.eval.metrics.corpus import RESAMPLES, CorpusMetric


class EntityF1Metric(CorpusMetric):
    """Micro F1 (or precision, or recall) of entities, in [0, 1]; no value over nothing.

    Args:
        measure: which.
        name: None is `entity_<measure>`.
        resamples: of the interval.
        seed: of the resampling.
    """

    requires = ("tags", "predicted_tags")
    why_missing = "there is no entity, gold or predicted"

    def __init__(
        self,
        measure: Literal["f1", "precision", "recall"] = "f1",
        name: str | None = None,
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        one_of("entities", "measure", measure, ("f1", "precision", "recall"))
        super().__init__(name or f"entity_{measure}", resamples=resamples, seed=seed)
        self.measure = measure

    def statistics(self, item: Item) -> list[float] | None:
        """Right, given and wanted entities of a sentence."""
        guess = [OUTSIDE if tag is None else tag for tag in item["predicted_tags"]]
        wanted, given = set(find_entities(item["tags"])), set(find_entities(guess))
        return [float(len(wanted & given)), float(len(given)), float(len(wanted))]

    def combine(self, sums: Sequence[float]) -> float | None:
        """The ratio; None where it divides by nothing."""
        right, given, wanted = sums
        below = {"f1": (given + wanted) / 2, "precision": given, "recall": wanted}[self.measure]
        return right / below if below else None
