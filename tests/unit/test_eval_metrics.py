"""Metrics over hand-made items: values, intervals, missing scores, samples of one item."""

from __future__ import annotations

import math

import pytest

from aligntune.errors import ValidationError
from aligntune.eval.metrics import (
    AccuracyMetric,
    MathAccuracyMetric,
    MeanMetric,
    MeanRewardMetric,
    Metric,
    NLLMetric,
    PerplexityMetric,
    PreferenceAccuracyMetric,
    RewardMarginMetric,
)
from aligntune.eval.stats import mean_interval, ratio_interval, wilson_interval


def test_accuracy_is_a_proportion_with_wilsons_interval():
    items = [
        {"prediction": "Paris ", "reference": "Paris"},
        {"prediction": "paris", "reference": "Paris"},
        {"prediction": None, "reference": "Paris"},
        {"prediction": 3, "reference": "3"},
        {"prediction": "x", "reference": None},
    ]
    value = AccuracyMetric().compute(items)
    interval = wilson_interval(2, 4)
    assert (value.value, value.low, value.high, value.n, value.missing) == (0.5, interval.low, interval.high, 4, 1)
    assert value.reason == "the reference is missing"
    assert str(value) == f"accuracy: 0.5 [{interval.low:.4g}, {interval.high:.4g}] (n=4, 1 missing)"


def test_samples_of_one_item_are_one_observation():
    items = [{"id": i, "prediction": p, "reference": "a"} for i, p in [("x", "a"), ("x", "b"), ("y", "a"), ("y", "a")]]
    value = AccuracyMetric().compute(items)
    assert (value.value, value.n, value.method) == (0.75, 2, "t")
    assert value.low == mean_interval([0.5, 1.0]).low


def test_math_accuracy_compares_expressions():
    pairs = [("1/2", "0.5"), ("1,000", "1000"), ("41", "42"), (None, "42"), ("7", None)]
    value = MathAccuracyMetric().compute([{"prediction": p, "reference": r} for p, r in pairs])
    assert (value.value, value.n, value.missing) == (0.5, 4, 1)


def test_perplexity_is_weighted_by_tokens():
    items = [{"nll": 2.0, "tokens": 1}, {"nll": 3.0, "tokens": 3}, {"nll": 0.0, "tokens": 0}]
    nll, perplexity = NLLMetric().compute(items), PerplexityMetric().compute(items)
    interval = ratio_interval([2.0, 3.0], [1, 3])
    assert (nll.value, nll.low, nll.high, nll.n, nll.missing) == (1.25, interval.low, interval.high, 2, 1)
    assert perplexity.value == pytest.approx(math.exp(1.25))
    assert perplexity.low == pytest.approx(math.exp(interval.low))
    assert not perplexity.higher_is_better
    assert PerplexityMetric().score({"nll": 3.0, "tokens": 3}) == 1.0
    beyond = PerplexityMetric().compute([{"nll": 800.0, "tokens": 1}])
    assert beyond.value is None
    assert "see nll" in beyond.reason


def test_preference_accuracy_and_margin():
    items = [{"chosen": 2.0, "rejected": 1.0}, {"chosen": 0.0, "rejected": 0.0}, {"chosen": -1.0, "rejected": 1.0}]
    accuracy, margin = PreferenceAccuracyMetric().compute(items), RewardMarginMetric().compute(items)
    assert accuracy.value == 0.5
    assert accuracy.low == wilson_interval(1.5, 3).low
    assert (margin.value, margin.method) == (pytest.approx(-1 / 3), "t")
    named = PreferenceAccuracyMetric("a", "b", "own").compute([{"a": 1, "b": 0}, {"a": None, "b": 0}])
    assert (named.name, named.value, named.missing) == ("own", 1.0, 1)


def test_a_margin_of_one_and_zero_is_a_mean_not_a_proportion():
    value = RewardMarginMetric().compute([{"chosen": 1, "rejected": 0}, {"chosen": 1, "rejected": 1}])
    assert value.value == 0.5


def test_mean_reward_leaves_none_out_and_says_so():
    value = MeanRewardMetric().compute([{"reward": 1.5}, {"reward": None}, {"reward": 0.5}])
    assert (value.value, value.n, value.missing) == (1.0, 2, 1)
    assert MeanMetric("tokens", higher_is_better=False).compute([{"tokens": 3}]).higher_is_better is False


def test_nothing_scored_is_no_value_and_never_zero():
    value = MeanRewardMetric().compute([{"reward": None}])
    assert (value.value, value.low, value.n, value.missing) == (None, None, 0, 1)
    assert "does not apply" in value.reason
    assert AccuracyMetric().compute([]).reason == "there are no items"
    assert PerplexityMetric().compute([]).value is None
    assert str(value).startswith("reward: no value (")


def test_a_missing_field_is_named():
    with pytest.raises(ValidationError, match=r"item 1 lacks 'reference', which accuracy needs; it has prediction"):
        AccuracyMetric().compute([{"prediction": 1, "reference": 1}, {"prediction": 1}])


def test_a_metric_of_ones_own_is_one_method():
    class Shouting(Metric):
        name = "shouting"
        requires = ("output",)

        def score(self, item):
            return float(item["output"].isupper())

    assert Shouting().compute([{"output": "A"}, {"output": "b"}]).value == 0.5
