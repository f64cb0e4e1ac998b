"""Perplexity: how well the model predicts given text, over the same tokens that training on it would count.

A text longer than the limit is cut there, or with `stride` read in windows that overlap: each window begins `stride`
tokens behind the one before, and counts the tokens that no earlier window counted, so that every token behind the first
window has at least limit - stride tokens of context. A smaller stride costs more passes and gives a lower value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.errors import ConfigurationError
from aligntune.eval.likelihood import Encoded, encode_row, length_limit, score
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.likelihood import NLLMetric, PerplexityMetric
from aligntune.eval.tasks.base import EvalKind, Row, Subject

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings, EvalTask

SCHEMAS = {"text": Schema.TEXT, "completion": Schema.PROMPT_COMPLETION, "assistant": Schema.MESSAGES}


class Perplexity(EvalKind):
    """`perplexity` and `nll` per token, token-weighted, and the share of rows that were `cut` at the length limit."""

    schema = Schema.TEXT
    options = frozenset({"likelihood_of", "max_length", "stride"})

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """Windows must overlap."""
        if task.stride is not None and task.max_length is not None and task.stride >= task.max_length:
            return [("stride", f"is {task.stride}, and must be below max_length = {task.max_length}")]
        return []

    def schema_for(self, settings: EvalSettings) -> Schema:
        """Plain text, prompt and completion, or conversations."""
        return SCHEMAS[settings.likelihood_of]

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """One item per row: its summed negative log-likelihood, its counted tokens, and whether it was cut."""
        encoded = [encode_row(subject.tokenizer, row) for row in rows]
        limit = length_limit(subject.model, settings.max_length)
        parts = [windows(row, limit, settings.stride) for row in encoded]
        flat = [part for row in parts for part in row]
        sizes: dict[str, Any] = {"batch_size": settings.batch_size, "max_length": settings.max_length}
        scored = iter(score(subject.model, subject.tokenizer, flat, **sizes))
        found = []
        for i, row, own in zip(ids, encoded, parts, strict=True):
            sums = [next(scored) for _ in own]
            cut = settings.stride is None and limit is not None and len(row.ids) > limit
            nll, tokens = math.fsum(s for s, _ in sums), sum(n for _, n in sums)
            found.append({"id": i, "nll": nll, "tokens": tokens, "cut": cut})
        return found

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """Perplexity first."""
        return [PerplexityMetric(), NLLMetric(), MeanMetric("cut", higher_is_better=False)]


def windows(row: Encoded, limit: int | None, stride: int | None) -> list[Encoded]:
    """The row in windows of `limit` tokens, each token counted in the first one that holds it with its context.

    Raises:
        ConfigurationError: the windows do not overlap, so that their first tokens would have no prediction.
    """
    if stride is None or limit is None or len(row.ids) <= limit:
        return [row]
    if stride >= limit:
        raise ConfigurationError(
            f"stride is {stride}, and the model's context has {limit} tokens", hint=f"set stride below {limit}"
        )
    found, done = [], 0
    for start in range(0, len(row.ids), stride):
        end = min(start + limit, len(row.ids))
        counted = [at >= done and row.counted[at] for at in range(start, end)]
        found.append(Encoded(row.ids[start:end], counted))
        done = end
        if end == len(row.ids):
            break
    return found
