"""Generation: write an answer to each prompt and measure its overlap with the reference, as for summaries or replies.

The overlaps are those of `aligntune.eval.metrics.overlap`, chosen by `metrics`; the first is the headline. `empty` is
the share of answers without a word: an overlap of 0 can mean that, or other words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.tasks.base import GENERATION, EvalKind, Row, Subject, answers, generation_faults, need_reference

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings, EvalTask


class Generation(EvalKind):
    """The chosen overlaps, `empty`, `tokens` and `finished`."""

    options = GENERATION | {"metrics", "bertscore"}

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """BERTScore needs its encoder, and the encoder BERTScore."""
        found = generation_faults(task)
        if not task.metrics:
            found.append(("metrics", "is empty: name at least one"))
        if ("bertscore" in task.metrics) != (task.bertscore is not None):
            has = "has no effect without bertscore in metrics" if task.bertscore else "is missing: name path and layer"
            found.append(("bertscore", has))
        return found

    def check(self, rows: Sequence[Row], rewards: Any = None) -> None:
        """Some row must have a reference."""
        super().check(rows, rewards)
        need_reference(rows, "generation")

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """Answers, each with its `prediction` and whether it is empty."""
        found = answers(rows, ids, settings, subject)
        return [
            {**item, "prediction": item["output"].strip(), "empty": float(not item["output"].strip())} for item in found
        ]

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """In the order of the settings."""
        overlaps = [overlap(name, settings) for name in settings.metrics]
        return [
            *overlaps,
            MeanMetric("empty", higher_is_better=False),
            MeanMetric("tokens", higher_is_better=False),
            MeanMetric("finished"),
        ]


def overlap(name: str, settings: EvalSettings) -> Metric:
    """The metric of a name in `metrics`."""
    from aligntune.eval.metrics import overlap as family

    if name.startswith("rouge"):
        return family.RougeMetric(name)  # type: ignore[arg-type]
    if name == "bertscore":
        encoder = settings.bertscore
        assert encoder is not None  # `faults` wants it
        return family.BertScoreMetric(encoder.path, encoder.layer, baseline=encoder.baseline)
    if name.startswith("chrf"):
        return family.ChrfMetric(word_order=2 if name == "chrf++" else 0)
    return family.BleuMetric() if name == "bleu" else family.SentenceBleuMetric()
