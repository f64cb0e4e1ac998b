"""Metrics, one family per file: accuracy, likelihood, preference, reward; `base` says what a metric is."""

from __future__ import annotations

from aligntune.eval.metrics.accuracy import AccuracyMetric, MathAccuracyMetric
from aligntune.eval.metrics.base import MeanMetric, Metric, MetricValue
from aligntune.eval.metrics.likelihood import NLLMetric, PerplexityMetric
from aligntune.eval.metrics.preference import PreferenceAccuracyMetric, RewardMarginMetric
from aligntune.eval.metrics.reward import MeanRewardMetric

__all__ = [
    "AccuracyMetric",
    "MathAccuracyMetric",
    "MeanMetric",
    "MeanRewardMetric",
    "Metric",
    "MetricValue",
    "NLLMetric",
    "PerplexityMetric",
    "PreferenceAccuracyMetric",
    "RewardMarginMetric",
]
