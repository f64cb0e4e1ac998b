"""Likelihood of given text: negative log-likelihood per token, and perplexity.

Items carry `nll` (nats, summed over a row's counted tokens) and `tokens`, as `aligntune.eval.likelihood` gives them.

    nll        = sum(nll) / sum(tokens)      every token weighs the same, whatever its row or batch
    perplexity = exp(nll)                    (Jelinek et al. 1977)

Both depend on the tokenizer: values of models with different tokenizers cannot be compared.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from aligntune.eval.metrics.base import Item, Metric, MetricValue
from aligntune.eval.stats import ratio_interval


class TokenMeanMetric(Metric):
    """Base of means over tokens: sum over all tokens / number of tokens. The interval treats rows as independent.

    A subclass writes `total`.
    """

    weight = "tokens"

    @abstractmethod
    def total(self, item: Item) -> tuple[float, int]:
        """The sum over the item's tokens, and their number."""

    def score(self, item: Item) -> float | None:
        """The item's own mean; None without a counted token, or where it is not finite."""
        amount, tokens = self.total(item)
        return amount / tokens if tokens and math.isfinite(amount) else None

    def aggregate(self, items: Sequence[Item], scores: Sequence[float | None], confidence: float = 0.95) -> MetricValue:
        """Token-weighted mean over the rows."""
        rows = [self.total(item) for item, score in zip(items, scores, strict=True) if score is not None]
        missing = len(items) - len(rows)
        if not rows:
            return self.value(None, missing, self.why_missing if items else "there are no items")
        interval = ratio_interval([amount for amount, _ in rows], [tokens for _, tokens in rows], confidence)
        return self.value(interval, missing, self.why_missing if missing else "")


class NLLMetric(TokenMeanMetric):
    """Mean negative log-likelihood per token, in nats; at least 0."""

    name = "nll"
    requires = ("nll", "tokens")
    higher_is_better = False
    why_missing = "the row has no counted token (it is empty, or cut before its answer)"

    def total(self, item: Item) -> tuple[float, int]:
        """`nll` and `tokens`."""
        return item["nll"], item["tokens"]


class PerplexityMetric(NLLMetric):
    """exp of the mean negative log-likelihood per token; at least 1. The interval of the mean is mapped by exp."""

    name = "perplexity"
    paired = False

    def aggregate(self, items: Sequence[Item], scores: Sequence[float | None], confidence: float = 0.95) -> MetricValue:
        """As `NLLMetric`, mapped by exp."""
        nll = super().aggregate(items, scores, confidence)
        if nll.value is None:
            return nll
        if max(nll.value, nll.high or 0) > 700:  # exp overflows a double at 709.8
            reason = f"exp({nll.value:.1f}) is beyond the numbers of a computer; see nll"
            return replace(nll, value=None, low=None, high=None, reason=reason)
        low, high = (None if x is None else math.exp(x) for x in (nll.low, nll.high))
        return replace(nll, value=math.exp(nll.value), low=low, high=high)
