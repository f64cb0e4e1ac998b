"""Do 95% intervals cover the truth in 95% of samples? By exact sums where outcomes can be listed, else by simulation.

| interval | grid |
|---|---|
| Wilson | n = 20, 50, 100, 300, 1000; p = 0.05, 0.1, 0.2 ... 0.9, 0.95 |
| paired difference (Newcombe) | n = 50, 100, 300; the first model right in 50 or 80%, 10, 30 or 60% of pairs differ |
| bootstrap of corpus metrics | n = 50, 100, 300 sentences; 20, 50, 80 or 95% of entities found |
| ECE | n = 100, 300, 1000; calibrated, and gaps of 0.04, 0.11 and 0.22 (slow: the whole grid) |

The bar: the mean over a grid lies in 94 to 97%, and no point under 92%.
"""

from __future__ import annotations

import math

import pytest

from aligntune.eval import CalibrationMetric
from aligntune.eval.metrics.corpus import bounds
from aligntune.eval.metrics.entities import EntityF1Metric
from aligntune.eval.stats import newcombe_paired, wilson_interval


def _meets(coverages, *, least=0.92):
    assert min(coverages.values()) >= least, coverages
    assert 0.94 <= sum(coverages.values()) / len(coverages) <= 0.97, coverages


def test_wilson():
    coverages = {}
    for n in (20, 50, 100, 300, 1000):
        intervals = [wilson_interval(k, n) for k in range(n + 1)]
        for p in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
            log = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
            weight = [math.exp(c + k * math.log(p) + (n - k) * math.log(1 - p)) for k, c in enumerate(log)]
            coverages[n, p] = sum(w for w, i in zip(weight, intervals, strict=True) if i.low <= p <= i.high)
    _meets(coverages)


def test_paired_difference():
    import numpy as np

    rng = np.random.default_rng(0)
    coverages = {}
    for n in (50, 100, 300):
        for p in (0.5, 0.8):
            for differ in (0.1, 0.3, 0.6):
                up = min(differ * 0.6, p)  # of the pairs that differ more are won than lost
                down = min(differ - up, 1 - p)
                cells = [p - up, up, down, 1 - p - down]
                hits = 0
                for both, first, second, neither in rng.multinomial(n, cells, size=1500).tolist():
                    low, high = newcombe_paired(both, first, second, neither)
                    hits += low <= up - down <= high
                coverages[n, p, differ] = hits / 1500
    _meets(coverages)


def _sentences(rng, n, p, count):
    """Right, given and wanted entities of n sentences, `count` times."""
    import numpy as np

    wanted = rng.poisson(1.2, (count, n))
    right = rng.binomial(wanted, p)
    return np.stack([right, right + rng.poisson(0.5, (count, n)), wanted], axis=-1).astype(float)


@pytest.mark.parametrize(
    ("sizes", "shares", "samples"),
    [((50,), (0.2, 0.8), 300), pytest.param((50, 100, 300), (0.2, 0.5, 0.8, 0.95), 1000, marks=pytest.mark.slow)],
)
def test_bootstrap_of_corpus_metrics(sizes, shares, samples):
    import numpy as np

    rng = np.random.default_rng(1)
    coverages = {}
    for n in sizes:
        for p in shares:
            right, given, wanted = _sentences(rng, 400_000, p, 1)[0].sum(axis=0)
            true = 2 * right / (given + wanted)
            hits = 0
            for table in _sentences(rng, n, p, samples):
                # The resampling of `CorpusMetric`, with its ratio taken over whole arrays.
                sums = rng.multinomial(n, [1 / n] * n, size=400) @ table
                low, high = bounds((2 * sums[:, 0] / np.maximum(sums[:, 1:].sum(axis=1), 1)).tolist(), 0.95, n)
                hits += low <= true <= high
            coverages[n, p] = hits / samples
    if samples >= 1000:
        _meets(coverages)
    assert min(coverages.values()) >= 0.905  # 300 samples: a standard error of 1.3%


def test_the_simulated_interval_is_the_metrics_own():
    """One table through the metric itself: its bounds are those of the arrays above."""
    import numpy as np

    table = _sentences(np.random.default_rng(3), 80, 0.6, 1)[0]

    class Given(EntityF1Metric):
        requires = ("counts",)

        def statistics(self, item):
            return item["counts"]

    value = Given(resamples=4000).compute([{"counts": row} for row in table.tolist()])
    sums = np.random.default_rng(4).multinomial(80, [1 / 80] * 80, size=4000) @ table
    low, high = bounds((2 * sums[:, 0] / sums[:, 1:].sum(axis=1)).tolist(), 0.95, 80)
    assert (value.low, value.high) == (pytest.approx(low, abs=0.005), pytest.approx(high, abs=0.005))


@pytest.mark.parametrize(
    ("sizes", "gaps", "samples"),
    [((100,), (0,), 40), pytest.param((100, 300, 1000), (0, 0.05, 0.15, 0.3), 400, marks=pytest.mark.slow)],
)
def test_calibration_error(sizes, gaps, samples):
    """Confidences are right in a share q; the model says q + 2 gap (1 - q)."""
    import numpy as np

    rng = np.random.default_rng(2)

    def draw(n, gap):
        q = rng.uniform(0.3, 0.95, n)
        return np.clip(q + 2 * gap * (1 - q), 0, 1), (rng.random(n) < q).astype(float)

    metric = CalibrationMetric(resamples=200)
    coverages = {}
    for n in sizes:
        for gap in gaps:
            true = metric._error(np.stack(draw(1_000_000, gap), axis=1)) if gap else 0.0
            hits = 0
            for _ in range(samples):
                rows = zip(*(x.tolist() for x in draw(n, gap)), strict=True)
                value = metric.compute([{"confidence": c, "correct": y} for c, y in rows])
                hits += value.low <= true <= value.high
            coverages[n, gap] = hits / samples
    if samples >= 400:  # a standard error of 1.1%
        _meets(coverages)
    assert min(coverages.values()) >= 0.85, coverages


def test_an_error_smaller_than_chance_makes_it_leaves_the_model_calibrated():
    """Both answers of each confidence in their exact shares: ECE is 0, and so is the lower bound."""
    items = [{"confidence": 0.75, "correct": float(i % 4 > 0)} for i in range(100)]
    value = CalibrationMetric(resamples=200).compute(items)
    assert value.value == pytest.approx(0, abs=1e-12)
    assert value.low == pytest.approx(0, abs=1e-12)
    assert value.high >= value.low
