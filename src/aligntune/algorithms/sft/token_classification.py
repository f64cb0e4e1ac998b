"""Token classification: a tag for each word, as for named entities (Devlin et al. 2019, arXiv:1810.04805, section 5.3).

Data: tokens and tags, also from CoNLL files. The first sub-token of a word carries its tag, the others -100. Held out:
precision, recall and F1 over whole entities (`aligntune.eval.entities`).
"""

from __future__ import annotations

from typing import ClassVar

from aligntune.algorithms.base import Head, Schema, task
from aligntune.algorithms.sft.classification import Classifier


@task("token_classification", trainer="transformers:Trainer", args="transformers:TrainingArguments", data=Schema.TOKENS)
class TokenClassification(Classifier):
    """Cross-entropy on the tag of each word."""

    inert: ClassVar[dict[str, str]] = {
        **Classifier.inert,
        "dataset.prompt_template": "tokens have their tags one by one, and a template would move them",
        "evaluation.dataset.prompt_template": "tokens have their tags one by one, and a template would move them",
    }
    head: ClassVar[Head] = "token_classification"
    evaluator: ClassVar[str] = "aligntune.eval.classification:evaluate_tokens"
