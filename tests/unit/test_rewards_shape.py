"""Rewards by statistics of the text, by overlap with a reference, by a lexicon."""

from __future__ import annotations

import math
import sys

import pytest

from aligntune import errors
from aligntune.errors import ConfigurationError
from aligntune.rewards import CompositeReward, get_reward_function
from aligntune.rewards.builtin import lexical, overlap
from aligntune.rewards.builtin.readability import index

NEEDED = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge": "rouge_score", "sentiment": "vaderSentiment"}


def make(name: str, **params: object):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    return get_reward_function(name, **params)


@pytest.mark.parametrize(("n", "score"), [(0, 0), (4, 0), (5, -0.25), (6, -0.5), (8, -1), (9, -1), (90, -1)])
def test_soft_overlong(n: int, score: float) -> None:
    """Equation 13 of DAPO, with L_max 8 and L_cache 4."""
    reward = get_reward_function("soft_overlong", max_length=8, cache=4)
    assert reward.compute("x", completion_ids=[0] * n) == score
    words = get_reward_function("soft_overlong", max_length=8, cache=4, unit="words")
    assert words.compute("a " * n) == score


@pytest.mark.parametrize("n", [1, 50, 100, 5000])
def test_cosine_length(n: int) -> None:
    reward = get_reward_function("cosine_length", max_length=100)
    t = min(n, 100) / 100
    ids = [0] * n
    assert reward.compute("#### 5", reference="5", completion_ids=ids) == pytest.approx(
        0.5 + 0.25 * (1 + math.cos(math.pi * t))
    )
    assert reward.compute("#### 6", reference="5", completion_ids=ids) == pytest.approx(
        -0.5 - 0.25 * (1 + math.cos(math.pi * t))
    )
    assert reward.compute("#### 6", reference=None, completion_ids=ids) is None


@pytest.mark.parametrize(
    ("name", "params", "what"),
    [
        ("soft_overlong", {"max_length": 3, "cache": 4}, "cache = 4 is more than max_length = 3"),
        ("soft_overlong", {"unit": "words", "tokenizer": "x"}, "tokenizer has no effect"),
        ("cosine_length", {"right_long": -0.7}, "a wrong answer would score more"),
        ("cosine_length", {"right_short": 2}, "does not fit"),
        ("brevity", {"budget": 0}, "does not fit"),
        ("conciseness", {"low": 2}, "low = 2 is above high = 1.2"),
        ("readability", {"low": 13}, "low = 13 is above high = 12"),
        ("compression_ratio", {"floor": 0}, "does not fit"),
        ("sentiment", {}, "lexical \\(VADER"),
        ("sentiment", {"backend": "judge"}, "does not fit"),
    ],
)
def test_what_is_refused(name: str, params: dict, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        get_reward_function(name, **params)


def test_tokens_without_ids_are_refused() -> None:
    for name in ("soft_overlong", "repetition", "brevity"):
        with pytest.raises(ConfigurationError, match="counts tokens, but gets no token ids"):
            get_reward_function(name, unit="tokens").batch(["a b"])


@pytest.mark.parametrize(
    ("name", "params", "text", "reference", "score"),
    [
        ("brevity", {"budget": 2}, "one two", None, 1),
        ("brevity", {"budget": 2}, "one two three", None, 0.5),
        ("brevity", {"budget": 2}, "a " * 9, None, 0),
        ("brevity", {}, " ", None, 0),
        ("brevity", {"budget": 3, "unit": "characters"}, "abc", None, 1),
        ("conciseness", {}, "a b c d", "a b c d", 1),
        ("conciseness", {}, "a", "a b c d", 0.5),
        ("conciseness", {}, "a b c d e f", "a b c d", 0.75),
        ("conciseness", {}, "a " * 99, "a b c d", 0),
        ("conciseness", {}, "", "a b c d", 0),
        ("conciseness", {}, "<think>" + "x " * 99 + "</think>a b c d", ["a b c d", "a b c d e f g h"], 1),
        ("repetition", {}, "one two three four five", None, 1),
        ("repetition", {"n": 1}, "so so so so", None, 0.25),
        ("repetition", {"n": 2}, "a b a b a b", None, 0.4),
        ("repetition", {}, "one", None, 1),
        ("repetition", {}, "", None, 0),
        ("repetition", {"n": 1}, "はははは", None, 0.25),
        ("compression_ratio", {}, "hi", None, 1),
        ("compression_ratio", {}, "", None, 0),
    ],
)
def test_lengths_and_repetition(name: str, params: dict, text: str, reference: object, score: float) -> None:
    columns = {} if reference is None else {"reference": reference}
    assert get_reward_function(name, **params).compute(text, **columns) == pytest.approx(score)


def test_loops_are_seen() -> None:
    prose = (
        "The river rises in the hills, runs past two old mills and a chapel, and reaches the sea near a town "
        "whose harbour was once the largest on that coast, though few ships call there now."
    )
    for name in ("repetition", "compression_ratio"):
        reward = get_reward_function(name)
        assert reward.compute(prose) == 1.0
        assert reward.compute("I am sorry. " * 200) < 0.2
        assert reward.compute("a" * 1_000_000) < 0.01
        assert reward.compute("はい、" * 5000) < 0.1
    ids = get_reward_function("repetition", unit="tokens", n=2)
    assert ids.compute("x", completion_ids=[1, 2, 1, 2, 1]) == 0.5


def test_readability_formulas() -> None:
    """The indices by hand: 17 letters, 6 words, 1 sentence; 37 letters, 5 words, 1 sentence, 3 long words."""
    assert index("The cat sat on the mat.", "ari") == pytest.approx(4.71 * 17 / 6 + 0.5 * 6 - 21.43)
    assert index("The cat sat on the mat.", "coleman_liau") == pytest.approx(0.0588 * 1700 / 6 - 0.296 * 100 / 6 - 15.8)
    text = "Considerable difficulties delayed us all."
    assert index(text, "lix") == pytest.approx(5 + 100 * 3 / 5)
    assert index("?!", "ari") is None


def test_readability() -> None:
    easy, hard = (
        "The cat sat on the mat. It is fat.",
        "Considerable institutional difficulties notwithstanding, delays.",
    )
    assert get_reward_function("readability").batch([easy, hard, "", "漢字" * 999, "a" * 10**6]) == [0, 0, 0, 0, 0]
    value = index(easy, "ari")
    banded = get_reward_function("readability", low=value - 1, high=value + 1)
    assert banded.compute(easy) == 1.0
    off = get_reward_function("readability", low=value + 1, high=value + 5, width=4.0)
    assert off.compute(easy) == pytest.approx(0.75)
    assert get_reward_function("readability", formula="lix", low=0, high=20).compute(easy) == 1.0


@pytest.mark.parametrize(
    ("name", "params", "text", "reference", "score"),
    [
        ("bleu", {}, "the cat", "the cat", 1),
        ("bleu", {}, "the cat sat on the mat", ["a dog", "the cat sat on the mat"], 1),
        ("bleu", {}, "", "the cat", 0),
        ("bleu", {}, "dogs bark", "the cat", 0),
        ("bleu", {"max_order": 1}, "the cat sat", "the cat slept", 2 / 3),
        ("bleu", {"lowercase": True}, "THE CAT", "the cat", 1),
        ("bleu", {"tokenize": "char"}, "東京都", "東京都", 1),
        ("chrf", {}, "the cat", "the cat", 1),
        ("chrf", {}, "", "the cat", 0),
        ("chrf", {}, "xyz", "the cat", 0),
        ("rouge", {}, "the cat sat", "the cat slept", 2 / 3),
        ("rouge", {"variant": "rouge2"}, "the cat sat", "the cat slept", 0.5),
        ("rouge", {"variant": "rouge1", "measure": "recall"}, "the the cat sat", "the cat", 1),
        ("rouge", {"variant": "rouge1", "measure": "precision"}, "the cat sat down", "the cat", 0.5),
        ("rouge", {}, "", "the cat", 0),
        ("rouge", {}, "東京都", ["東京", "x"], 0.8),
        ("rouge", {}, "<think>the cat</think>dog", "the cat", 0),
    ],
)
def test_overlap(name: str, params: dict, text: str, reference: object, score: float) -> None:
    found = make(name, **params).compute(text, reference=reference)
    assert found == pytest.approx(score, abs=0.03 if name == "bleu" and score == 0 else 1e-9)


@pytest.mark.parametrize("name", ["bleu", "chrf", "rouge"])
def test_overlap_of_huge_and_missing(name: str) -> None:
    reward = make(name)
    scores = CompositeReward([reward]).score_batch(["word " * 200_000, "a"], {"reference": ["a b c", None]})
    assert scores.total[0] < 0.05
    assert scores.total[1] is None
    assert scores.stats[f"{name}/truncated"] == scores.stats[f"{name}/no_reference"] == 1


def test_overlap_is_the_librarys() -> None:
    pytest.importorskip("sacrebleu")
    import sacrebleu

    a, b = "the quick brown fox jumps over dogs", "a quick brown fox jumped over the dogs"
    assert make("bleu").compute(a, reference=b) == pytest.approx(
        sacrebleu.sentence_bleu(a, [b], use_effective_order=True).score / 100
    )
    assert make("chrf", word_order=2).compute(a, reference=b) == pytest.approx(
        sacrebleu.sentence_chrf(a, [b], word_order=2).score / 100
    )


def test_sentiment() -> None:
    reward = make("sentiment", backend="lexical")
    good, neutral, bad = reward.batch(["What a lovely, wonderful day!", "It is a table.", "A horrible, sad disaster."])
    assert good > 0.6
    assert neutral == reward.compute("") == reward.compute("漢字") == 0
    assert bad < -0.6
    scores = CompositeReward([reward]).score_batch(["good " * 100_000])
    assert scores.total[0] > 0.9
    assert scores.stats["sentiment[lexical]/truncated"] == 1


@pytest.mark.parametrize("name", list(NEEDED))
def test_without_the_package(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    package = NEEDED[name]
    for module in (package, f"{package}.metrics", f"{package}.rouge_scorer", f"{package}.vaderSentiment"):
        monkeypatch.setitem(sys.modules, module, None)
    for cached in (overlap._sacrebleu, overlap._rouge, lexical._vader):
        cached.cache_clear()
    params = {"backend": "lexical"} if name == "sentiment" else {}
    with pytest.raises(errors.EnvironmentError, match="which is not installed") as e:
        get_reward_function(name, **params).batch(["a"], {"reference": ["b"]})
    assert e.value.hint == "run: pip install 'aligntune[text]'"
    for cached in (overlap._sacrebleu, overlap._rouge, lexical._vader):
        cached.cache_clear()
