"""Values of held-out rows with their intervals: their storing, and the intervals of differences and of the AUC."""

from __future__ import annotations

import math

import pytest

from aligntune.core.held_out import HeldOut, held_out_row, renew
from aligntune.errors import ValidationError
from aligntune.eval.estimates import clipped, mapped_exp, mean_of, ratio_of
from aligntune.eval.in_training import directions
from aligntune.eval.stats import Interval, auc_interval, mean_interval, ratio_interval, welch_interval


def test_values_are_plain_numbers_with_their_intervals_beside():
    found = HeldOut.of({"reward": Interval(0.4, 0.3, 0.5, 20, "t"), "rows": 20}, "eval_")
    assert found == {"eval_reward": 0.4, "eval_rows": 20.0}
    assert list(found.intervals) == ["eval_reward"]
    row = held_out_row(found, 7, "prompt")
    assert (row["step"], row["task"], row["kind"]) == (7, None, "prompt")
    assert row["metrics"]["eval_reward"] == {
        "name": "eval_reward", "value": 0.4, "low": 0.3, "high": 0.5, "n": 20, "method": "t", "confidence": 0.95,
    }  # fmt: skip
    assert row["metrics"]["eval_rows"]["low"] is None
    assert directions([row]) == {}


def test_a_later_evaluation_takes_the_place_of_an_earlier_one():
    known = {"eval_reward": [0.0, 1.0], "eval/sums/accuracy": [0.1, 0.2]}
    gone = held_out_row(HeldOut({"eval_reward": math.nan}), 1, "prompt")
    task = {"step": 1, "task": "sums", "metrics": {"accuracy": {"low": 0.3, "high": 0.4}}}
    renew(known, [gone, task], "eval/")
    assert known == {"eval/sums/accuracy": [0.3, 0.4]}


def test_values_that_are_not_finite_have_no_interval():
    assert mean_of([1.0, 2.0]) == mean_interval([1.0, 2.0])
    assert ratio_of([1.0, 2.0], [3.0, 4.0]) == ratio_interval([1.0, 2.0], [3.0, 4.0])
    for found in (mean_of([1.0, math.nan]), ratio_of([math.nan, 1.0], [1.0, 1.0])):
        assert math.isnan(found.estimate)
        assert (found.low, found.high) == (None, None)
    assert math.isnan(auc_interval([math.nan], [1.0]).estimate)
    assert welch_interval([math.inf, 1.0], [0.0, 1.0]).low is None


def test_intervals_are_mapped_and_clipped():
    nll = Interval(1.0, 0.5, 1.5, 9, "ratio")
    assert mapped_exp(nll) == Interval(math.e, math.exp(0.5), math.exp(1.5), 9, "ratio")
    assert mapped_exp(Interval(800.0, None, None, 1, "ratio")).estimate == math.exp(700)
    assert clipped(Interval(-0.1, -0.3, 0.1, 9, "t"), 0.0) == Interval(0.0, 0.0, 0.1, 9, "t")


def test_welch_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = [1.0, 2.5, 3.0, 7.0], [0.5, 0.7, 0.1, 0.9, 0.4, 1.1]
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    found = welch_interval(a, b)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert welch_interval([1.0], [0.0, 1.0]).low is None
    assert welch_interval([1.0, 1.0], [0.0, 0.0]) == Interval(1.0, None, None, 4, "welch")
    with pytest.raises(ValidationError):
        welch_interval([], [1.0])


def test_the_auc_and_its_variance_equal_the_sums_over_all_pairs():
    import numpy as np

    rng = np.random.default_rng(0)
    good, bad = rng.integers(0, 9, 23) + 2.0, rng.integers(0, 9, 31) * 1.0
    wins = (good[:, None] > bad) + 0.5 * (good[:, None] == bad)
    variance = wins.mean(1).var(ddof=1) / 23 + wins.mean(0).var(ddof=1) / 31
    auc = wins.mean()
    half = 1.959963984540054 * math.sqrt(variance) / (auc * (1 - auc))
    ends = [1 / (1 + math.exp(-(math.log(auc / (1 - auc)) + s * half))) for s in (-1, 1)]
    found = auc_interval(good.tolist(), bad.tolist())
    assert [found.estimate, found.low, found.high] == pytest.approx([auc, *ends])
    assert auc_interval([2.0, 3.0], [0.0, 1.0]) == Interval(1.0, None, None, 4, "delong")


def test_the_interval_of_the_auc_covers():
    import numpy as np

    rng = np.random.default_rng(1)
    true = 0.5 * (1 + math.erf(1.0 / 2))  # N(1, 1) against N(0, 1): Phi(1 / sqrt(2))
    hits = 0
    for _ in range(1000):
        found = auc_interval(rng.normal(1, 1, 40).tolist(), rng.normal(0, 1, 25).tolist())
        hits += found.low <= true <= found.high
    assert 0.93 <= hits / 1000 <= 0.975
