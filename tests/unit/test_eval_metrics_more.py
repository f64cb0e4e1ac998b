"""Metrics against the reference implementations and brute force: overlap, KL, calibration, pass@k, win rate, entities."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from aligntune.errors import ValidationError
from aligntune.eval.entities import entity_scores
from aligntune.eval.metrics import (
    BleuMetric,
    CalibrationMetric,
    ChrfMetric,
    EntityF1Metric,
    ImplicitRewardMetric,
    KLDivergenceMetric,
    LogRatioMetric,
    PassAtKMetric,
    PolicyEntropyMetric,
    RewardAccuracyMetric,
    RougeMetric,
    SentenceBleuMetric,
    WinRateMetric,
    pass_at_k,
    reliability_curve,
)
from aligntune.eval.metrics.corpus import summed
from aligntune.eval.metrics.win_rate import consistency

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "mat",
    "tree",
    "big",
    "small",
    "quickly",
    "and",
    "then",
    ",",
    ".",
]


def _texts(seed: int, count: int = 30) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    golds = [" ".join(rng.choices(WORDS, k=rng.randint(4, 14))) for _ in range(count)]
    guesses = [" ".join(w if rng.random() < 0.7 else rng.choice(WORDS) for w in g.split()) for g in golds]
    return guesses, golds


def _items(guesses: list[str], golds: list[str]) -> list[dict[str, object]]:
    return [{"prediction": a, "reference": b} for a, b in zip(guesses, golds, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_bleu_and_chrf_equal_sacrebleu(seed):
    sacrebleu = pytest.importorskip("sacrebleu")
    guesses, golds = _texts(seed)
    items = _items(guesses, golds)
    assert BleuMetric(name="b").compute(items).value == pytest.approx(sacrebleu.corpus_bleu(guesses, [golds]).score)
    assert ChrfMetric().compute(items).value == pytest.approx(sacrebleu.corpus_chrf(guesses, [golds]).score)
    words = sacrebleu.metrics.CHRF(word_order=2).corpus_score(guesses, [golds]).score
    assert ChrfMetric(word_order=2).compute(items).value == pytest.approx(words)
    single = [sacrebleu.sentence_bleu(a, [b]).score for a, b in zip(guesses, golds, strict=True)]
    assert SentenceBleuMetric().compute(items).value == pytest.approx(sum(single) / len(single))


def test_bleu_takes_several_references_and_resamples_questions():
    sacrebleu = pytest.importorskip("sacrebleu")
    guesses, golds = _texts(11)
    others, _ = _texts(12)
    items = [{"prediction": a, "reference": [b, c]} for a, b, c in zip(guesses, golds, others, strict=True)]
    metric = BleuMetric()
    value = metric.compute(items)
    assert value.value == pytest.approx(sacrebleu.corpus_bleu(guesses, [golds, others]).score)
    assert (value.n, value.method) == (30, "bootstrap")
    assert value.low < value.value < value.high
    assert BleuMetric().compute(items) == value
    assert metric.signature.startswith("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp")


def test_an_empty_answer_counts_and_a_missing_reference_does_not():
    metric = RougeMetric("rouge1")
    value = metric.compute(
        [
            {"prediction": "the cat sat", "reference": "the cat slept"},
            {"prediction": None, "reference": "the cat"},
            {"prediction": "x", "reference": None},
            {"prediction": "x", "reference": []},
        ]
    )
    assert value.value == pytest.approx((2 / 3 + 0) / 2)
    assert (value.n, value.missing, value.reason) == (2, 2, "the reference is missing")


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_equals_rouge_score(variant):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer([variant], use_stemmer=True)
    guesses, golds = _texts(3)
    wanted = [scorer.score(b, a)[variant].fmeasure for a, b in zip(guesses, golds, strict=True)]
    found = RougeMetric(variant, stemmer=True).compute(_items(guesses, golds))
    assert found.value == pytest.approx(sum(wanted) / len(wanted))
    assert found.name == variant


def test_a_corpus_difference_pairs_questions():
    guesses, golds = _texts(5, 60)
    metric, items = ChrfMetric(), _items(guesses, golds)
    exact = _items(golds[:30] + guesses[30:], golds)
    first = summed(exact, [metric.statistics(i) for i in exact])
    second = summed(items, [metric.statistics(i) for i in items])
    found = metric.difference(first, second)
    assert found.difference == pytest.approx(metric.compute(exact).value - metric.compute(items).value)
    assert found.low > 0
    assert found.p_value < 0.01
    assert (found.n, found.losses) == (60, 0)
    same = metric.difference(second, second)
    assert (same.difference, same.low, same.high, same.p_value, same.ties) == (0, 0, 0, 1.0, 60)


def _distributions(seed: int) -> tuple[list[float], list[float]]:
    rng = random.Random(seed)
    p, q = [rng.random() + 0.05 for _ in range(6)], [rng.random() + 0.05 for _ in range(6)]
    return [x / sum(p) for x in p], [x / sum(q) for x in q]


@pytest.mark.parametrize("seed", range(4))
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed):
    """Expectations over the vocabulary, in which every token weighs as often as the policy draws it."""
    p, q = _distributions(seed)
    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    def expected(estimator: str) -> float:
        metric = KLDivergenceMetric(estimator)
        each = [
            metric.score({"policy_logps": [math.log(a)], "reference_logps": [math.log(b)]})
            for a, b in zip(p, q, strict=True)
        ]
        return sum(a * x for a, x in zip(p, each, strict=True))

    assert expected("k1") == pytest.approx(exact)
    assert expected("k3") == pytest.approx(exact)
    assert expected("k2") != pytest.approx(exact, rel=1e-3)


def test_kl_and_entropy_are_means_over_tokens():
    items = [{"kl": [0.1, 0.3], "entropy": [1.0, 2.0]}, {"kl": [0.5], "entropy": [0.0]}, {"kl": [], "entropy": []}]
    kl, entropy = KLDivergenceMetric().compute(items), PolicyEntropyMetric().compute(items)
    assert (kl.value, kl.n, kl.missing, kl.weight) == (pytest.approx(0.3), 2, 1, "tokens")
    assert (entropy.value, entropy.name) == (pytest.approx(1.0), "entropy")


def test_an_infinite_estimate_is_missing_and_not_zero():
    value = KLDivergenceMetric("k3").compute([{"policy_logps": [-800.0], "reference_logps": [0.0]}])
    assert (value.value, value.missing) == (None, 1)


def test_log_ratio_and_implicit_reward():
    items = [{"policy_logp": -1.0, "reference_logp": -3.0}, {"policy_logp": None, "reference_logp": 0.0}]
    assert LogRatioMetric().compute(items).value == 2.0
    value = ImplicitRewardMetric(beta=0.5).compute(items)
    assert (value.value, value.missing) == (1.0, 1)


def test_reward_accuracy_counts_ties_half():
    pairs = [(1.0, 0.0), (0.0, 1.0), (2.0, 2.0), (None, 1.0)]
    value = RewardAccuracyMetric().compute([{"chosen_score": a, "rejected_score": b} for a, b in pairs])
    assert (value.value, value.missing) == (0.5, 1)


def _calibration(table: list[tuple[float, int]]) -> list[dict[str, float]]:
    return [{"confidence": c, "correct": r} for c, r in table]


def test_calibration_by_hand():
    items = _calibration([(0.0, 0), (0.95, 1), (0.95, 0), (0.55, 1), (1.0, 1)])
    # Bins of width 0.1: {0.0}, {0.55}, {0.95, 0.95, 1.0}.
    wanted = (1 * 0 + 1 * 0.45 + 3 * abs(2 / 3 - 2.9 / 3)) / 5
    value = CalibrationMetric("ece", bins=10, resamples=50).compute(items)
    assert value.value == pytest.approx(wanted)
    brier = CalibrationMetric("brier").compute(items)
    assert brier.value == pytest.approx((0 + 0.05**2 + 0.95**2 + 0.45**2 + 0) / 5)
    assert not brier.higher_is_better
    curve = reliability_curve(items, bins=10)
    assert [(b.n, round(b.accuracy, 3)) for b in curve] == [(1, 0.0), (1, 1.0), (3, 0.667)]
    assert [b.n for b in reliability_curve(items, bins=2, adaptive=True)] == [3, 2]


def test_a_calibrated_model_has_the_ece_that_is_expected_of_it():
    rng = random.Random(0)
    confidences = [rng.random() for _ in range(2000)]
    items = _calibration([(c, int(rng.random() < c)) for c in confidences])
    metric = CalibrationMetric("ece", resamples=100)
    assert metric.compute(items).value == pytest.approx(metric.expected_if_calibrated(items), abs=0.012)
    wrong = _calibration([(c, int(rng.random() < c / 2)) for c in confidences])
    assert metric.compute(wrong).low > 2 * metric.expected_if_calibrated(wrong)


def test_a_confidence_beyond_one_is_refused():
    with pytest.raises(ValidationError, match="confidence in"):
        CalibrationMetric().compute(_calibration([(1.2, 1)]))


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 4), (6, 6, 2), (7, 3, 7), (8, 1, 5)])
def test_pass_at_k_equals_counting_all_choices(n, c, k):
    samples = [1] * c + [0] * (n - c)
    choices = list(itertools.combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(x) for x in choices) / len(choices))


def test_pass_at_k_averages_problems_and_leaves_out_short_ones():
    items = [{"id": i, "correct": r} for i, rs in {"a": [1, 0, 0], "b": [0, 0, 0], "c": [1]}.items() for r in rs]
    value = PassAtKMetric(2).compute(items)
    assert (value.value, value.n, value.missing) == (pytest.approx((2 / 3 + 0) / 2), 2, 1)
    assert value.reason == "the problem has fewer than 2 scored samples"
    assert PassAtKMetric(5).compute(items).value is None
    with pytest.raises(ValidationError, match="num_samples"):
        pass_at_k(1, 1, 2)


def test_win_rate_takes_verdicts_that_turn_with_the_order_as_ties():
    verdicts = [("win", "win"), ("win", "loss"), ("tie", "tie"), ("loss", "loss"), (None, "win")]
    items = [{"first": a, "second": b} for a, b in verdicts]
    value = WinRateMetric().compute(items)
    assert (value.value, value.n, value.missing) == (0.5, 4, 1)
    assert consistency(items) == 0.75
    scores = [{"score": 1.0, "other_score": 0.0}, {"score": 1.0, "other_score": 1.0}]
    assert WinRateMetric("scores").compute(scores).value == 0.75
    with pytest.raises(ValidationError, match="verdict"):
        WinRateMetric().compute([{"first": "won", "second": "win"}])


@pytest.mark.parametrize("seed", range(3))
def test_entity_f1_equals_the_counting_of_entity_scores(seed):
    rng = random.Random(seed)
    tags = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    gold = [rng.choices(tags, k=8) for _ in range(20)]
    guess = [[t if rng.random() < 0.7 else rng.choice(tags) for t in row] for row in gold]
    items = [{"tags": a, "predicted_tags": b} for a, b in zip(gold, guess, strict=True)]
    value = EntityF1Metric().compute(items)
    assert value.value == pytest.approx(entity_scores(gold, guess)["f1"])
    assert value.low < value.value < value.high
    assert EntityF1Metric().compute([{"tags": ["O"], "predicted_tags": ["O"]}]).value is None
