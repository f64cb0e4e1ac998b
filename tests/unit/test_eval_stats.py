"""Intervals and tests against published values, an independent library (mpmath) and simulation."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from aligntune.errors import ValidationError
from aligntune.eval.stats import (
    mcnemar_exact,
    mean_interval,
    newcombe_paired,
    paired_difference,
    paired_t_test,
    proportion_or_mean,
    ratio_interval,
    t_cdf,
    t_quantile,
    wilson_interval,
)


def test_wilson_equals_published_values():
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        interval = wilson_interval(successes, n)
        assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
        assert interval.estimate == successes / n
    assert wilson_interval(20, 20).high == 1.0


def test_wilson_bounds_solve_its_equation():
    for successes, n in itertools.product((1, 7, 19), (20, 100)):
        interval = wilson_interval(successes, n, 0.9)
        for bound in (interval.low, interval.high):
            assert abs(successes / n - bound) == pytest.approx(1.6448536269514722 * math.sqrt(bound * (1 - bound) / n))


def _binomial(n, p):
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


def test_wilson_covers_exactly_summed_over_all_outcomes():
    coverages = []
    for n in (20, 50, 100, 500):
        intervals = [wilson_interval(k, n) for k in range(n + 1)]
        for p in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
            coverages.append(sum(w for w, i in zip(_binomial(n, p), intervals, strict=True) if i.low <= p <= i.high))
    assert min(coverages) > 0.92
    assert 0.94 <= sum(coverages) / len(coverages) <= 0.97


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((20, 12, 2, 16), 0.0562, 0.3292),  # Newcombe 1998, Statistics in Medicine 17:2635, method 10
        ((8, 3, 1, 2), -0.1574, 0.4136),  # Tang, Li and Tang 2010
        ((7, 25, 2, 68), 0.133, 0.318),  # Chang et al. 2024
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland, Lydersen and Laake 2014, table II
    ],
)
def test_newcombe_paired_equals_published_values(table, low, high):
    got = newcombe_paired(*table)
    digits = len(str(low).split(".")[1])
    assert (round(got[0], digits), round(got[1], digits)) == (low, high)


def test_newcombe_paired_without_any_difference_or_variation():
    low, high = newcombe_paired(10, 0, 0, 10)
    assert low == pytest.approx(-high)
    assert newcombe_paired(10, 0, 0, 0)[1] > 0


def test_paired_interval_covers_by_simulation():
    rng = random.Random(0)
    for n, p, keep in [(50, 0.5, 0.5), (100, 0.8, 0.7)]:
        hits = 0
        for _ in range(600):
            a = [int(rng.random() < p) for _ in range(n)]
            b = [x if rng.random() < keep else int(rng.random() < p) for x in a]
            result = paired_difference(a, b)
            hits += result.low <= 0 <= result.high
        assert 0.93 <= hits / 600 <= 0.985


def test_t_equals_mpmath():
    mpmath = pytest.importorskip("mpmath")
    for t, df in itertools.product((-3.0, -0.4, 0.0, 0.1, 1.0, 2.5, 12.0), (1, 2, 7.5, 30, 499, 20000)):
        x = mpmath.mpf(df) / (df + mpmath.mpf(t) ** 2)
        tail = mpmath.betainc(mpmath.mpf(df) / 2, 0.5, 0, x, regularized=True) / 2
        want = float(1 - tail if t >= 0 else tail)
        assert t_cdf(t, df) == pytest.approx(want, rel=1e-9, abs=1e-13)


def test_t_quantiles_equal_tables():
    for p, df, want in [(0.975, 1, 12.7062), (0.975, 10, 2.2281), (0.95, 5, 2.0150), (0.995, 120, 2.6174)]:
        assert t_quantile(p, df) == pytest.approx(want, abs=5e-5)
        assert t_quantile(1 - p, df) == pytest.approx(-t_quantile(p, df))
    assert t_quantile(0.975, 1e6) == pytest.approx(1.95996, abs=1e-4)


def test_mean_interval_by_hand():
    # mean 3, sd sqrt(2.5), n 5, t(0.975, 4) = 2.776445
    interval = mean_interval([1, 2, 3, 4, 5])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert interval.estimate == 3
    assert (interval.low, interval.high) == (pytest.approx(3 - half, abs=1e-5), pytest.approx(3 + half, abs=1e-5))
    single = mean_interval([2.0])
    assert (single.estimate, single.low, single.high, single.n) == (2.0, None, None, 1)


def test_bootstrap_agrees_with_t_on_many_items_and_repeats():
    rng = random.Random(1)
    values = [rng.gauss(1, 2) for _ in range(400)]
    t, boot = mean_interval(values), mean_interval(values, method="bootstrap", seed=3)
    assert boot.low == pytest.approx(t.low, abs=0.03)
    assert boot.high == pytest.approx(t.high, abs=0.03)
    assert boot == mean_interval(values, method="bootstrap", seed=3)


def test_proportion_or_mean_chooses_by_the_values():
    assert proportion_or_mean([0, 1, 1]).method == "wilson"
    assert proportion_or_mean([0, 0.5, 1]).method == "t"


def test_ratio_interval_is_the_weighted_mean_and_covers():
    assert ratio_interval([2.0, 9.0], [1, 3]).estimate == 11 / 4
    constant = ratio_interval([2.0, 6.0, 4.0], [1, 3, 2])
    assert (constant.low, constant.high) == (2.0, 2.0)
    rng = random.Random(2)
    hits = 0
    for _ in range(500):
        counts = [rng.randint(1, 30) for _ in range(60)]
        sums = [sum(rng.expovariate(0.5) for _ in range(n)) for n in counts]
        interval = ratio_interval(sums, counts)
        hits += interval.low <= 2.0 <= interval.high
    assert 0.92 <= hits / 500 <= 0.98


def test_mcnemar_equals_the_binomial_sum():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)
    assert mcnemar_exact(40, 12) == pytest.approx(2 * sum(math.comb(52, k) for k in range(13)) / 2**52)
    assert mcnemar_exact(100_000, 99_000) == mcnemar_exact(99_000, 100_000) < 0.05


def test_paired_difference_of_binary_scores():
    a = [1] * 20 + [1] * 12 + [0] * 2 + [0] * 16
    b = [1] * 20 + [0] * 12 + [1] * 2 + [0] * 16
    result = paired_difference(a, b)
    assert (result.wins, result.losses, result.ties, result.n) == (12, 2, 36, 50)
    assert result.difference == pytest.approx(0.2)
    assert (round(result.low, 4), round(result.high, 4)) == (0.0562, 0.3292)
    assert result.p_value == pytest.approx(mcnemar_exact(12, 2))
    reverse = paired_difference(b, a)
    assert (reverse.low, reverse.high) == (pytest.approx(-result.high), pytest.approx(-result.low))
    boot = paired_difference(a, b, method="bootstrap")
    assert boot.low == pytest.approx(0.06, abs=0.021)
    assert boot.method == "bootstrap"


def test_paired_difference_of_real_scores_is_the_t_test():
    a, b = [1.5, 2.0, 3.5, 4.0, 6.0], [1.0, 2.0, 3.0, 4.5, 4.0]
    result = paired_difference(a, b)
    d = [0.5, 0.0, 0.5, -0.5, 2.0]
    interval = mean_interval(d)
    assert (result.difference, result.low, result.high) == (0.5, interval.low, interval.high)
    # t = 0.5 / (sd / sqrt 5) = 1.19523 on 4 degrees of freedom
    assert result.p_value == pytest.approx(0.298015, abs=1e-6)
    assert paired_t_test([1.0]) is None
    assert paired_t_test([0.0, 0.0]) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(3, 2), "3 of 2"),
        (lambda: wilson_interval(0, 0), "0 of 0"),
        (lambda: mean_interval([]), "no values"),
        (lambda: mean_interval([1.0, float("nan")]), "value 1 is nan"),
        (lambda: paired_difference([1], [1, 0]), "differ in number: 1 and 2"),
        (lambda: paired_difference([0.5], [1], method="newcombe"), "scores of 0 or 1"),
        (lambda: ratio_interval([0.0], [0]), "sum to 0"),
        (lambda: wilson_interval(1, 2, 1.5), "confidence 1.5"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(ValidationError, match=message):
        call()
