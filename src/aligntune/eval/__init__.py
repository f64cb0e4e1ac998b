"""Evaluation: real numbers with intervals, every item kept, and two models compared on the same items.

    from aligntune.eval import EvalRunner, load_eval_config
    result = EvalRunner(load_eval_config("eval.yaml")).run()

Names are resolved on first use, so importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.eval.config import EvalConfig, EvalSettings, EvalTask, load_eval_config
    from aligntune.eval.evaluators import BaseEvaluator, RLEvaluator
    from aligntune.eval.generation import generate_texts
    from aligntune.eval.likelihood import completion_nll, preference_logprobs, sequence_logprobs
    from aligntune.eval.lm_eval import LMEvalConfig, LMEvalRunner
    from aligntune.eval.metrics import (
        AccuracyMetric,
        BertScoreMetric,
        BleuMetric,
        CalibrationMetric,
        ChrfMetric,
        CorpusMetric,
        EntityF1Metric,
        ImplicitRewardMetric,
        KLDivergenceMetric,
        LogRatioMetric,
        MacroF1Metric,
        MajorityMetric,
        MathAccuracyMetric,
        MeanMetric,
        MeanRewardMetric,
        Metric,
        MetricValue,
        NLLMetric,
        PassAtKMetric,
        PerplexityMetric,
        PolicyEntropyMetric,
        PreferenceAccuracyMetric,
        RewardAccuracyMetric,
        RewardMarginMetric,
        RougeMetric,
        SentenceBleuMetric,
        TagAccuracyMetric,
        TokenMeanMetric,
        WinRateMetric,
        pass_at_k,
        reliability_curve,
    )
    from aligntune.eval.policy import token_statistics
    from aligntune.eval.registry import EvalRegistry
    from aligntune.eval.result import Comparison, EvalResult, TaskResult, compare
    from aligntune.eval.runner import EvalRunner
    from aligntune.eval.sample_logger import SampleLogger
    from aligntune.eval.significance import (
        Equivalence,
        across_seeds,
        adjust,
        effect_size,
        minimum_detectable,
        tost,
    )
    from aligntune.eval.tasks.base import GENERATION, EvalKind, Opponent, answers
    from aligntune.grading.sandbox import SafeCodeExecutor, TimeoutException

_MODULES = {
    "config": ("EvalConfig", "EvalSettings", "EvalTask", "load_eval_config"),
    "evaluators": ("BaseEvaluator", "RLEvaluator"),
    "generation": ("generate_texts",),
    "likelihood": ("completion_nll", "preference_logprobs", "sequence_logprobs"),
    "lm_eval": ("LMEvalConfig", "LMEvalRunner"),
    "metrics": (
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
    ),
    "registry": ("EvalRegistry",),
    "result": ("Comparison", "EvalResult", "TaskResult", "compare"),
    "runner": ("EvalRunner",),
    "sample_logger": ("SampleLogger",),
    "significance": ("Equivalence", "across_seeds", "adjust", "effect_size", "minimum_detectable", "tost"),
    "tasks.base": ("GENERATION", "EvalKind", "Opponent", "answers"),
    "policy": ("token_statistics",),
}
_SANDBOX = "aligntune.grading.sandbox.executor"
_NAMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
_NAMES |= {"SafeCodeExecutor": _SANDBOX, "TimeoutException": _SANDBOX}

__all__ = [
    "GENERATION",
    "AccuracyMetric",
    "BaseEvaluator",
    "BertScoreMetric",
    "BleuMetric",
    "CalibrationMetric",
    "ChrfMetric",
    "Comparison",
    "CorpusMetric",
    "EntityF1Metric",
    "Equivalence",
    "EvalConfig",
    "EvalKind",
    "EvalRegistry",
    "EvalResult",
    "EvalRunner",
    "EvalSettings",
    "EvalTask",
    "ImplicitRewardMetric",
    "KLDivergenceMetric",
    "LMEvalConfig",
    "LMEvalRunner",
    "LogRatioMetric",
    "MacroF1Metric",
    "MajorityMetric",
    "MathAccuracyMetric",
    "MeanMetric",
    "MeanRewardMetric",
    "Metric",
    "MetricValue",
    "NLLMetric",
    "Opponent",
    "PassAtKMetric",
    "PerplexityMetric",
    "PolicyEntropyMetric",
    "PreferenceAccuracyMetric",
    "RLEvaluator",
    "RewardAccuracyMetric",
    "RewardMarginMetric",
    "RougeMetric",
    "SafeCodeExecutor",
    "SampleLogger",
    "SentenceBleuMetric",
    "TagAccuracyMetric",
    "TaskResult",
    "TimeoutException",
    "TokenMeanMetric",
    "WinRateMetric",
    "across_seeds",
    "adjust",
    "answers",
    "compare",
    "completion_nll",
    "effect_size",
    "generate_texts",
    "load_eval_config",
    "minimum_detectable",
    "pass_at_k",
    "preference_logprobs",
    "reliability_curve",
    "sequence_logprobs",
    "token_statistics",
    "tost",
]


__getattr__, __dir__ = lazy_names(__name__, {name: f"{module}:{name}" for name, module in _NAMES.items()})
