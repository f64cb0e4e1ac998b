"""Rewards that compare an answer in words, and the normal forms and choices behind them."""

from __future__ import annotations

import pytest

from aligntune.errors import ConfigurationError, RewardError
from aligntune.grading.choice import find_choice, gold_label, read_options
from aligntune.grading.text import normal, overlap_f1, pieces, sentences, words
from aligntune.rewards import CompositeReward, get_reward_function

CITIES = {"A": "Rome", "B": "Paris", "C": "Paris, Texas", "D": "to be or not to be"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris, 2024", ["paris", "2024"]),
        ("東京へ", ["東", "京", "へ"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("snake_case don't", ["snake", "case", "don", "t"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_pieces_cut_long_runs() -> None:
    assert pieces("ab" * 13) == ["abababab"] * 3 + ["ab"]
    assert pieces("electroencephalograph") == ["electroencephalograph"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S.A.", "usa"),
        ("an apple, a pear!", "apple pear"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("1.5", "1.5"),
        ("1,500", "1500"),
        ("1,5", "1,5"),
        ("5-4", "54"),
        ("a_b", "ab"),
        ("«Père»", "père"),
        ("हिन्दी।", "हिन्दी"),
    ],
)
def test_normal(text: str, expected: str) -> None:
    assert normal(text) == expected


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Dr. Smith met J. R. Hobbs at 3.5 km. He left.", 2),
        ("e.g. this one", 1),
        ("first line\nsecond line", 2),
        ("これは一つ。これは二つ。", 2),
        ("...", 0),
        ("", 0),
        ('He said "no." Then he left.', 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(sentences(text)) == count


@pytest.mark.parametrize(
    ("name", "params", "text", "reference", "score"),
    [
        ("exact_match", {}, "The Seine.", "seine", 1),
        ("exact_match", {}, "<think>Loire?</think> Seine", "Seine", 1),
        ("exact_match", {}, "Seine", ["Loire", "Seine"], 1),
        ("exact_match", {}, "Seine", {"text": ["Seine"]}, 1),
        ("exact_match", {}, "Seine or Loire", "Seine", 0),
        ("exact_match", {}, "", "Seine", 0),
        ("exact_match", {}, "-5", "5", 0),
        ("exact_match", {}, "15", "1.5", 0),
        ("exact_match", {}, "!", "?", 0),
        ("exact_match", {}, "?", "?", 1),
        ("exact_match", {}, "", "the", 0),
        ("exact_match", {}, "東京。", "東京", 1),
        ("exact_match", {"normalize": "none"}, "seine", "Seine", 0),
        ("exact_match", {"where": "final"}, "It flows there, so the answer is Seine.", "Seine", 1),
        ("exact_match", {"where": "final"}, "Seine, I think", "Seine", 0),
        ("f1", {}, "in Paris", "Paris, France", 0.5),
        ("f1", {}, "Paris", "Paris", 1),
        ("f1", {}, "Paris Paris", "Paris", 2 / 3),
        ("f1", {}, "", "Paris", 0),
        ("f1", {}, "Paris", ["Rome", "Paris"], 1),
        ("f1", {}, "東京", "東京都", 0.8),
        ("contains", {}, "It is in Paris.", "paris", 1),
        ("contains", {}, "parisian", "paris", 0),
        ("contains", {"whole_words": False}, "parisian", "paris", 1),
        ("contains", {"ignore_case": False}, "Paris", "paris", 0),
        ("contains", {}, "<think>paris</think> Rome", "paris", 0),
        ("contains", {"mode": "all"}, "a b", ["a", "c"], 0),
        ("contains", {"mode": "share"}, "a b", ["a", "c"], 0.5),
        ("contains", {"max_words": 3}, "it is in paris", "paris", 0),
        ("contains", {}, "C++ (14)", "c++", 1),
    ],
)
def test_text_answers(name: str, params: dict, text: str, reference: object, score: float) -> None:
    assert get_reward_function(name, **params).compute(text, reference=reference) == pytest.approx(score)


@pytest.mark.parametrize("name", ["exact_match", "f1", "contains"])
@pytest.mark.parametrize("missing", [None, "", [], [None], {"text": []}])
def test_no_reference_is_none(name: str, missing: object) -> None:
    scores = CompositeReward([get_reward_function(name)]).score_batch(["a"], {"reference": [missing]})
    assert scores.total == [None]
    assert scores.stats[f"{name}/no_reference"] == 1


def test_f1_is_symmetric() -> None:
    assert overlap_f1("a b c d", "c d e") == overlap_f1("c d e", "a b c d")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B) Paris", "B"),
        ("B: Rome", None),
        ("Paris", "B"),
        ("paris texas", "C"),
        ("The answer is (B).", "B"),
        ("The answer is B because of the tower", "B"),
        (r"so \boxed{B}", "B"),
        (r"so \boxed{\text{B}}", "B"),
        ("#### B", "B"),
        ("<answer>B</answer>", "B"),
        ("<think>A</think>B", "B"),
        ("Let us see.\nRome is in Italy.\n\nB. Paris", "B"),
        ("B. Paris\n\nIt is the capital.", "B"),
        ("Answer: D", "D"),
        ("The answer is D. to be or not to be", "D"),
        ("to be or not to be", "D"),
        ("A or B", None),
        ("A, B, C, D", None),
        ("A\nB", None),
        (r"\boxed{A} \boxed{B}", None),
        ("The answer is A or B", None),
        ("The answer is A, B", None),
        ("", None),
        ("Z", None),
        ("Rome Paris", None),
        ("Because it is pretty", None),
        ("b" * 100_000, None),
    ],
)
def test_find_choice(text: str, label: str | None) -> None:
    assert find_choice(text, CITIES) == label


def test_gold_labels() -> None:
    options = read_options(["Rome", "Paris"])
    assert [gold_label(g, options) for g in ("B", "b", "(B)", 1, "1", "Paris", "paris.")] == ["B"] * 7
    assert [gold_label(g, options) for g in (None, True, 7, "London", "")] == [None] * 5
    assert gold_label("5", read_options(["4", "5"])) == "B"
    assert gold_label("1", read_options({"label": ["1", "2"], "text": ["x", "y"]})) == "1"
    for bad in ("AB", 5, [], {}):
        with pytest.raises(ValueError):
            read_options(bad)


def test_choice() -> None:
    reward = get_reward_function("choice")
    columns = {"reference": ["B"] * 4, "choices": [["Rome", "Paris"]] * 4}
    assert reward.batch(["B", "Paris", "A", "?"], columns) == [1, 1, 0, 0]
    composite = CompositeReward([reward])
    scores = composite.score_batch(["?", "B"], {"reference": ["B", "Z"], "choices": [["Rome", "Paris"]] * 2})
    assert scores.total == [0, None]
    assert scores.stats["choice/no_choice"] == scores.stats["choice/gold_unparseable"] == 1
    with pytest.raises(RewardError, match="the choices are str"):
        reward.score("B", 0, {"reference": "B", "choices": "AB"})


@pytest.mark.parametrize(
    ("params", "text", "score"),
    [
        ({}, "<think>a</think><answer>b</answer>", 1),
        ({}, "x <think>a</think> y <answer>b</answer> z", 1),
        ({"only": True}, "x <think>a</think><answer>b</answer>", 0),
        ({"only": True}, "\n<think>a</think>\n<answer>b</answer>\n", 1),
        ({}, "<answer>b</answer><think>a</think>", 0),
        ({}, "<think>a<answer>b</answer></think>", 0),
        ({}, "<think></think><answer>b</answer>", 0),
        ({}, "<think>a</think><answer>b</answer></answer>", 0),
        ({}, "", 0),
        ({"partial": True}, "<think>a</think><answer>b", 0.5),
        ({"tags": ["x"]}, "<x>1</x>", 1),
    ],
)
def test_xml_tags(params: dict, text: str, score: float) -> None:
    assert get_reward_function("xml_tags", **params).compute(text) == score


@pytest.mark.parametrize("tags", [[], ["a", "a"], ["<a>"]])
def test_xml_tags_refuses(tags: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="give different names"):
        get_reward_function("xml_tags", tags=tags)
