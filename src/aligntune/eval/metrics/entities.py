"""Entity F1 over sentences: right entities have the same type and the same words (`aligntune.eval.entities`).

>>> EntityF1Metric().compute([{"tags": ["B-PER", "O"], "predicted_tags": ["B-PER", "O"]}]).value
1.0

Micro F1 = 2 right / (given + wanted), summed over the sentences; the interval resamples sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

from aligntune.eval.entities import find_entities
from aligntune.eval.metrics.base import Item
from aligntune.eval.metrics.corpus import CorpusMetric


class EntityF1Metric(CorpusMetric):
    """Micro F1 of entities, in [0, 1]; no value where neither gold nor prediction has an entity."""

    name = "entity_f1"
    requires = ("tags", "predicted_tags")
    why_missing = "there is no entity, gold or predicted"

    def statistics(self, item: Item) -> list[float] | None:
        """Right, given and wanted entities of a sentence."""
        wanted, given = set(find_entities(item["tags"])), set(find_entities(item["predicted_tags"]))
        return [float(len(wanted & given)), float(len(given)), float(len(wanted))]

    def combine(self, sums: Sequence[float]) -> float | None:
        """2 right / (given + wanted)."""
        right, given, wanted = sums
        return 2 * right / (given + wanted) if given + wanted else None
