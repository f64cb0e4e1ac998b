"""Scores of classifiers against cases worked by hand, and against counts of a few lines."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from aligntune.eval.classification import label_scores, tag_scores, word_tags
from aligntune.eval.entities import entity_scores, find_entities, marks_entities, split_tag


def spans(text: str) -> list[tuple[str, int, int]]:
    return find_entities(text.split())


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-p I-p O", [("p", 0, 2)]),
        ("O B-p I-p", [("p", 1, 3)]),
        ("B-p B-p I-p", [("p", 0, 1), ("p", 1, 3)]),
        ("B-p I-l", [("p", 0, 1), ("l", 1, 2)]),
        ("O I-p I-p O", [("p", 1, 3)]),
        ("I-p B-p I-p", [("p", 0, 1), ("p", 1, 3)]),
        ("B-p O I-p", [("p", 0, 1), ("p", 2, 3)]),
        ("S-p B-p I-p E-p O S-l", [("p", 0, 1), ("p", 1, 4), ("l", 5, 6)]),
        ("B-p E-p I-p", [("p", 0, 2), ("p", 2, 3)]),
        ("B-p E-p E-p", [("p", 0, 2), ("p", 2, 3)]),
        ("U-p I-p", [("p", 0, 1), ("p", 1, 2)]),
        ("B-p I-p L-p L-p", [("p", 0, 3), ("p", 3, 4)]),
        ("person person O place", [("person", 0, 2), ("place", 3, 4)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 2)]),
        ("", []),
    ],
)
def test_entities_worked_by_hand(tags: str, found: Any) -> None:
    assert spans(tags) == found


def test_a_tag_has_prefix_and_type() -> None:
    assert split_tag("O") == ("O", "")
    assert split_tag("B-creative-work") == ("B", "creative-work")
    assert split_tag("location") == ("I", "location")
    assert marks_entities(["B-x", "I-x"])
    assert marks_entities(["x", "O"])
    assert not marks_entities(["NOUN", "VERB", "X"])


def test_entity_scores_worked_by_hand() -> None:
    # Gold: person 0-2, place 3-4 | person 0-1.   Predicted: person 0-2, place 3-5 | place 0-1.
    gold = [["B-person", "I-person", "O", "B-place", "O"], ["B-person"]]
    guess = [["B-person", "I-person", "O", "B-place", "I-place"], ["B-place"]]
    scores = entity_scores(gold, guess)
    assert scores["precision"] == pytest.approx(1 / 3)
    assert scores["recall"] == pytest.approx(1 / 3)
    assert scores["f1"] == pytest.approx(1 / 3)
    assert (scores["precision/person"], scores["recall/person"]) == (1.0, 0.5)
    assert scores["f1/person"] == pytest.approx(2 / 3)
    assert (scores["precision/place"], scores["recall/place"], scores["f1/place"]) == (0.0, 0.0, 0.0)
    assert scores["f1_macro"] == pytest.approx(1 / 3)
    assert scores["f1_weighted"] == pytest.approx(2 / 3 * 2 / 3)
    assert (scores["entities"], scores["entities/person"], scores["entities/place"]) == (3.0, 2.0, 1.0)


def test_the_example_of_the_entity_literature() -> None:
    # One boundary is missed, one entity found: a half of each.
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    guess = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    scores = entity_scores(gold, guess)
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0.5, 0.5, 0.5)


def test_nothing_to_find_and_nothing_found() -> None:
    assert entity_scores([["O"]], [["O"]]) == {
        "precision": 0.0, "recall": 0.0, "f1": 0.0, "precision_macro": 0.0, "precision_weighted": 0.0,
        "recall_macro": 0.0, "recall_weighted": 0.0, "f1_macro": 0.0, "f1_weighted": 0.0, "entities": 0.0,
    }  # fmt: skip
    assert entity_scores([["B-x"]], [["O"]])["f1"] == 0.0
    with pytest.raises(ValueError, match="2 gold tags and 1"):
        entity_scores([["O", "O"]], [["O"]])


def random_entities(generator: random.Random, length: int) -> list[tuple[str, int, int]]:
    found, at = [], 0
    while at < length:
        end = at + generator.randint(1, 3)
        if generator.random() < 0.5 and end <= length:
            found.append((generator.choice("xyz"), at, end))
        at = end + generator.randint(0, 2)
    return found


def spelled(entities: list[tuple[str, int, int]], length: int, scheme: str) -> list[str]:
    """Tags of entities in one of the schemes."""
    tags = ["O"] * length
    before = None
    for kind, start, end in entities:
        for i in range(start, end):
            inner = "I"
            if scheme == "BIOES" and end - start == 1:
                inner = "S"
            elif scheme == "BIOES" and i == end - 1:
                inner = "E"
            elif i == start and (scheme != "IOB1" or (before is not None and before == (kind, start))):
                inner = "B"
            tags[i] = f"{inner}-{kind}"
        before = (kind, end)
    return tags


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES"])
def test_every_scheme_is_read_back(scheme: str) -> None:
    generator = random.Random(1)
    for _ in range(300):
        length = generator.randint(0, 12)
        entities = random_entities(generator, length)
        assert find_entities(spelled(entities, length, scheme)) == entities


def test_any_tags_give_entities_that_cover_just_the_tagged_tokens() -> None:
    generator = random.Random(2)
    tags = ["O", "x", *[f"{p}-{t}" for p in "BIESLU" for t in "xy"]]
    for _ in range(300):
        row = generator.choices(tags, k=generator.randint(0, 10))
        covered = [i for _, start, end in find_entities(row) for i in range(start, end)]
        assert covered == [i for i, tag in enumerate(row) if tag != "O"]
        assert entity_scores([row], [row])["f1"] == (1.0 if covered else 0.0)


def test_label_scores_worked_by_hand() -> None:
    gold, guess = ["a", "a", "a", "b", "b", "c"], ["a", "a", "b", "b", "d", "a"]
    scores = label_scores(gold, guess)
    assert scores["accuracy"] == pytest.approx(3 / 6)
    assert scores["precision/a"] == pytest.approx(2 / 3)
    assert scores["recall/a"] == pytest.approx(2 / 3)
    assert (scores["precision/b"], scores["recall/b"], scores["f1/b"]) == (0.5, 0.5, 0.5)
    assert (scores["f1/c"], scores["f1/d"]) == (0.0, 0.0)
    # Four labels occur, three of them among the gold ones.
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert scores["f1_weighted"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 2) / 6)
    assert [scores[f"rows/{x}"] for x in "abcd"] == [3.0, 2.0, 1.0, 0.0]


def test_label_scores_against_a_table_of_counts() -> None:
    generator = random.Random(3)
    for _ in range(50):
        n = generator.randint(1, 30)
        gold, guess = generator.choices("abcd", k=n), generator.choices("abcde", k=n)
        table = Counter(zip(gold, guess, strict=True))
        names = sorted({*gold, *guess})
        scores = label_scores(gold, guess)
        f1s = []
        for name in names:
            true = table[name, name]
            p = true / (guess.count(name) or 1)
            r = true / (gold.count(name) or 1)
            f1s.append(2 * p * r / (p + r) if true else 0.0)
            assert scores[f"f1/{name}"] == pytest.approx(f1s[-1])
        assert scores["f1_macro"] == pytest.approx(sum(f1s) / len(f1s))
        # Weighted recall is accuracy.
        assert scores["recall_weighted"] == pytest.approx(scores["accuracy"])


def test_a_word_without_a_prediction_counts_as_outside_or_as_wrong() -> None:
    entities = tag_scores([["B-x", "B-x", "O"]], [["B-x", None, None]], ["O", "B-x"])
    assert (entities["precision"], entities["recall"]) == (1.0, 0.5)
    assert entities["accuracy"] == pytest.approx(2 / 3)
    speech = tag_scores([["NOUN", "VERB"]], [["NOUN", None]], ["NOUN", "VERB"])
    assert speech["accuracy"] == 0.5
    assert (speech["recall/VERB"], speech["tags/VERB"], speech["tags"]) == (0.0, 1.0, 2.0)
    assert "f1" not in speech


def test_the_likeliest_tag_at_the_first_sub_token() -> None:
    import torch

    rows = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]])
    assert word_tags(rows, [0, -1, 1], ["O", "B-x"]) == ["B-x", None, "O"]
