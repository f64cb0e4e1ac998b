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
    from aligntune.eval.metrics import (
        AccuracyMetric,
        MathAccuracyMetric,
        MeanMetric,
        MeanRewardMetric,
        Metric,
        MetricValue,
        NLLMetric,
        PerplexityMetric,
        PreferenceAccuracyMetric,
        RewardMarginMetric,
    )
    from aligntune.eval.registry import EvalRegistry
    from aligntune.eval.result import Comparison, EvalResult, TaskResult, compare
    from aligntune.eval.runner import EvalRunner
    from aligntune.eval.sample_logger import SampleLogger
    from aligntune.eval.tasks.base import EvalKind
    from aligntune.grading.sandbox import SafeCodeExecutor, TimeoutException

_MODULES = {
    "config": ("EvalConfig", "EvalSettings", "EvalTask", "load_eval_config"),
    "evaluators": ("BaseEvaluator", "RLEvaluator"),
    "generation": ("generate_texts",),
    "likelihood": ("completion_nll", "preference_logprobs", "sequence_logprobs"),
    "metrics": (
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
    ),
    "registry": ("EvalRegistry",),
    "result": ("Comparison", "EvalResult", "TaskResult", "compare"),
    "runner": ("EvalRunner",),
    "sample_logger": ("SampleLogger",),
    "tasks.base": ("EvalKind",),
}
_SANDBOX = "aligntune.grading.sandbox.executor"
_NAMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
_NAMES |= {"SafeCodeExecutor": _SANDBOX, "TimeoutException": _SANDBOX}

__all__ = [
    "AccuracyMetric",
    "BaseEvaluator",
    "Comparison",
    "EvalConfig",
    "EvalKind",
    "EvalRegistry",
    "EvalResult",
    "EvalRunner",
    "EvalSettings",
    "EvalTask",
    "MathAccuracyMetric",
    "MeanMetric",
    "MeanRewardMetric",
    "Metric",
    "MetricValue",
    "NLLMetric",
    "PerplexityMetric",
    "PreferenceAccuracyMetric",
    "RLEvaluator",
    "RewardMarginMetric",
    "SafeCodeExecutor",
    "SampleLogger",
    "TaskResult",
    "TimeoutException",
    "compare",
    "completion_nll",
    "generate_texts",
    "load_eval_config",
    "preference_logprobs",
    "sequence_logprobs",
]


__getattr__, __dir__ = lazy_names(__name__, {name: f"{module}:{name}" for name, module in _NAMES.items()})
