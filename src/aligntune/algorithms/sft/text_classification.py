"""Text classification: one label for a text (Devlin et al. 2019, arXiv:1810.04805, section 4.1).

Data: a text and a label, by name or by number. A causal model reads the label off its last token, an encoder off its
first, as Transformers' `...ForSequenceClassification` classes do. Held out: accuracy, and precision, recall and F1.
"""

from __future__ import annotations

from typing import Any, ClassVar

from aligntune.algorithms.base import Head, Schema, task
from aligntune.algorithms.sft.classification import Classifier


@task(
    "text_classification",
    trainer="transformers:Trainer",
    args="transformers:TrainingArguments",
    data=Schema.CLASSIFICATION,
)
class TextClassification(Classifier):
    """Cross-entropy on the label of a text."""

    head: ClassVar[Head] = "sequence_classification"
    evaluator: ClassVar[str] = "aligntune.eval.classification:evaluate_texts"

    balanced_sampling: bool = False
    """Draw every class equally often: an epoch keeps its length, rare classes repeat and frequent ones are drawn from
    (Buda et al. 2018, arXiv:1710.05381)."""

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = super().faults(config)
        if self.balanced_sampling and self.class_weights == "balanced":
            found.append(
                ("task.class_weights", "is balanced and task.balanced_sampling is on: that counts rare classes twice; "
                 "keep one of the two")
            )  # fmt: skip
        return found
