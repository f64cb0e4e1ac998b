"""Equivalence, corrections, detectable differences: by simulation, by published values, and against plain loops."""

from __future__ import annotations

import math
import random

import pytest

from aligntune.errors import ValidationError
from aligntune.eval.significance import (
    across_seeds,
    adjust,
    detectable_mean,
    effect_size,
    equivalent_proportions,
    minimum_detectable,
    tost,
)
from aligntune.eval.stats import mcnemar_exact, mean_interval, wilson_interval


def test_tost_says_equivalent_different_or_undecided():
    same = [0.001 * (-1) ** i for i in range(100)]
    found = tost(same, margin=0.01)
    assert (found.verdict, found.n) == ("equivalent", 100)
    interval = mean_interval(same, 0.9)
    assert (found.low, found.high) == (interval.low, interval.high)
    assert tost([0.5 + x for x in same], margin=0.01).verdict == "different"
    rough = tost([math.sin(i) for i in range(20)], margin=0.01)
    assert rough.verdict == "undecided"
    assert rough.needed > 20
    assert "items needed" in str(rough)


def test_the_interval_inside_the_margin_is_the_verdict():
    rng = random.Random(1)
    for _ in range(50):
        gaps = [rng.gauss(0.2, 1) for _ in range(40)]
        found = tost(gaps, margin=0.5)
        assert (found.verdict == "equivalent") == (found.low > -0.5 and found.high < 0.5)
        assert (found.p_value < 0.05) == (found.verdict == "equivalent")


def test_tost_is_falsely_sure_in_at_most_five_percent():
    """On the margin, where it is most often wrong."""
    rng, count = random.Random(0), 2000
    wrong = sum(
        tost([rng.gauss(0.1, 0.3) for _ in range(60)], margin=0.1).verdict == "equivalent" for _ in range(count)
    )
    assert wilson_interval(wrong, count).low <= 0.05
    assert wrong / count < 0.06


@pytest.mark.parametrize(("n", "disagree"), [(50, 0.1), (100, 0.06), (200, 0.06), (200, 0.1), (300, 0.2)])
def test_equivalence_of_proportions_is_falsely_sure_in_at_most_five_percent(n, disagree):
    """Summed over every outcome, with the true difference on the margin."""
    margin = 0.05
    p, q = (disagree + margin) / 2, (disagree - margin) / 2
    wrong = 0.0
    for b in range(n + 1):
        for c in range(n - b + 1):
            rest = n - b - c
            log_p = math.lgamma(n + 1) - math.lgamma(b + 1) - math.lgamma(c + 1) - math.lgamma(rest + 1)
            log_p += b * math.log(p) + c * math.log(q) + rest * math.log(1 - p - q)
            if log_p > -25 and equivalent_proportions(rest, b, c, 0, margin).verdict == "equivalent":
                wrong += math.exp(log_p)
    assert wrong <= 0.05


def test_the_bounds_are_where_the_score_statistic_is_at_its_quantile():
    """The statistic written as in Tango 1998, equation 8, with the restricted estimate of the second cell."""
    b, c, n, alpha = 12, 2, 50, 0.025
    found = equivalent_proportions(36, b, c, 0, 0.1, alpha=alpha)
    for delta, sign in ((found.low, 1), (found.high, -1)):
        linear, constant = -b - c + (2 * n - b + c) * delta, -c * delta * (1 - delta)
        q21 = (math.sqrt(linear**2 - 4 * 2 * n * constant) - linear) / (4 * n)
        statistic = (b - c - n * delta) / math.sqrt(n * (2 * q21 + delta * (1 - delta)))
        assert statistic == pytest.approx(sign * 1.959964, abs=1e-5)
    assert found.low < found.difference < found.high


def test_equal_answers_are_equivalent_only_with_enough_items():
    assert equivalent_proportions(5, 0, 0, 5, 0.01).verdict == "undecided"
    assert equivalent_proportions(500, 0, 0, 500, 0.01).verdict == "equivalent"
    assert equivalent_proportions(400, 100, 10, 400, 0.01).verdict == "different"


@pytest.mark.parametrize(("values", "margin", "match"), [([0.1], 0.1, "two items"), ([0.1, 0.2], 0.0, "margin")])
def test_what_cannot_be_tested_is_refused(values, margin, match):
    with pytest.raises(ValidationError, match=match):
        tost(values, margin)


def test_holm_and_benjamini_hochberg_by_hand():
    p = [0.01, 0.04, None, 0.03, 0.005]
    assert adjust(p) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert adjust(p, "bh") == pytest.approx([0.02, 0.04, None, 0.04, 0.02])
    assert adjust([None]) == [None]
    assert adjust([0.9, 0.8]) == [1.0, 1.0]


def test_holm_keeps_the_family_error_rate():
    rng, count = random.Random(3), 4000
    wrong = sum(min(adjust([rng.random() for _ in range(6)])) < 0.05 for _ in range(count))
    assert wilson_interval(wrong, count).low <= 0.05


def test_the_detectable_difference_is_found_with_the_stated_power():
    rng, n, agreement, count = random.Random(4), 500, 0.8, 1000
    delta = minimum_detectable(0.6, n, agreement=agreement)
    found = 0
    for _ in range(count):
        draws = [rng.random() for _ in range(n)]
        wins = sum(d < (1 - agreement + delta) / 2 for d in draws)
        losses = sum((1 - agreement + delta) / 2 <= d < 1 - agreement for d in draws)
        found += mcnemar_exact(wins, losses) < 0.05
    assert 0.74 < found / count < 0.86
    assert minimum_detectable(0.6, n) > delta
    assert minimum_detectable(0.5, 1) == 1.0
    assert detectable_mean(1.0, 100) == pytest.approx(0.2802, abs=1e-4)


def test_effect_size_is_the_mean_in_standard_deviations():
    assert effect_size([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert effect_size([1.0, 1.0]) is None
    assert effect_size([1.0]) is None


def test_seeds_are_the_sample():
    summary = across_seeds([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    assert summary.values == [0.5, 1.0, 0.0]
    assert summary.interval == mean_interval([0.5, 1.0, 0.0])
    assert summary.between == pytest.approx(0.5)
    assert summary.within == pytest.approx((math.sqrt(0.5 / 2) + 0 + 0) / 3)
