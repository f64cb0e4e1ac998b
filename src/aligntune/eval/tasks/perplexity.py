"""Perplexity: how well the model predicts given text, over the same tokens that training on it would count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.eval.likelihood import encode_row, length_limit, score
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.likelihood import NLLMetric, PerplexityMetric
from aligntune.eval.tasks.base import EvalKind, Row, Subject

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings

SCHEMAS = {"text": Schema.TEXT, "completion": Schema.PROMPT_COMPLETION, "assistant": Schema.MESSAGES}


class Perplexity(EvalKind):
    """`perplexity` and `nll` per token, token-weighted, and the share of rows that were `cut` at the length limit."""

    schema = Schema.TEXT
    options = frozenset({"likelihood_of", "max_length"})

    def schema_for(self, settings: EvalSettings) -> Schema:
        """Plain text, prompt and completion, or conversations."""
        return SCHEMAS[settings.likelihood_of]

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """One item per row: its summed negative log-likelihood, its counted tokens, and whether it was cut."""
        encoded = [encode_row(subject.tokenizer, row) for row in rows]
        scored = score(subject.model, subject.tokenizer, encoded, settings.batch_size, max_length=settings.max_length)
        limit = length_limit(subject.model, settings.max_length)
        return [
            {"id": i, "nll": nll, "tokens": tokens, "cut": limit is not None and len(row.ids) > limit}
            for i, row, (nll, tokens) in zip(ids, encoded, scored, strict=True)
        ]

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """Perplexity first."""
        return [PerplexityMetric(), NLLMetric(), MeanMetric("cut", higher_is_better=False)]
