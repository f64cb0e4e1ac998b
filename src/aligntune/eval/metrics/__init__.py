"""Metrics, one family per file; `base` says what a metric is, `corpus` what one is that is no mean of item scores."""

from __future__ import annotations

from aligntune.eval.metrics.accuracy import AccuracyMetric, MathAccuracyMetric
from aligntune.eval.metrics.base import MeanMetric, Metric, MetricValue
from aligntune.eval.metrics.calibration import CalibrationMetric, reliability_curve
from aligntune.eval.metrics.corpus import CorpusMetric
from aligntune.eval.metrics.entities import EntityF1Metric
from aligntune.eval.metrics.labels import MacroF1Metric, TagAccuracyMetric
from aligntune.eval.metrics.likelihood import NLLMetric, PerplexityMetric, TokenMeanMetric
from aligntune.eval.metrics.majority import MajorityMetric
from aligntune.eval.metrics.overlap import BertScoreMetric, BleuMetric, ChrfMetric, RougeMetric, SentenceBleuMetric
from aligntune.eval.metrics.passing import PassAtKMetric, pass_at_k
from aligntune.eval.metrics.policy import (
    ImplicitRewardMetric,
    KLDivergenceMetric,
    LogRatioMetric,
    PolicyEntropyMetric,
)
from aligntune.eval.metrics.preference import PreferenceAccuracyMetric, RewardAccuracyMetric, RewardMarginMetric
from aligntune.eval.metrics.reward import MeanRewardMetric
from aligntune.eval.metrics.win_rate import WinRateMetric

__all__ = [
    "AccuracyMetric",
    "BertScoreMetric",
    "BleuMetric",
    "CalibrationMetric",
    "ChrfMetric",
    "CorpusMetric",
    "EntityF1Metric",
    "ImplicitRewardMetric",
    "KLDivergenceMetric",
    "LogRatioMetric",
    "MacroF1Metric",
    "MajorityMetric",
    "MathAccuracyMetric",
    "MeanMetric",
    "MeanRewardMetric",
    "Metric",
    "MetricValue",
    "NLLMetric",
    "PassAtKMetric",
    "PerplexityMetric",
    "PolicyEntropyMetric",
    "PreferenceAccuracyMetric",
    "RewardAccuracyMetric",
    "RewardMarginMetric",
    "RougeMetric",
    "SentenceBleuMetric",
    "TagAccuracyMetric",
    "TokenMeanMetric",
    "WinRateMetric",
    "pass_at_k",
    "reliability_curve",
]
