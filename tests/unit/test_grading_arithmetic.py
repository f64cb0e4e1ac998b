"""Arithmetic steps of a text, and the rewards made of them."""

from __future__ import annotations

import json
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligntune.grading.arithmetic import MAX_STEPS, share_that_holds, steps, value
from aligntune.rewards import CompositeReward, get_reward_function


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6 * 12 = 72", [("6 * 12", "72", True)]),
        ("2 + 2 = 5", [("2 + 2", "5", False)]),
        ("So 6 x 12 = 72.", [("6 * 12", "72", True)]),
        ("6 × 12 = 72 and 144 ÷ 2 = 72", [("6 * 12", "72", True), ("144 / 2", "72", True)]),
        (r"$6 \times 12 = 72$", [("6 * 12", "72", True)]),
        (r"\frac{1}{2} + \frac{1}{2} = 1", [("((1)/(2)) + ((1)/(2))", "1", True)]),
        ("2 * 3 = 6 = 5 + 1", [("2 * 3", "6", True), ("6", "5 + 1", True)]),
        ("10 / 3 = 3.33", [("10 / 3", "3.33", True)]),
        ("10 / 3 = 3", [("10 / 3", "3", False)]),
        ("10 / 3 ≈ 3.3", [("10 / 3", "3.3", True)]),
        ("1,000 + 1 = 1,001", [("1000 + 1", "1001", True)]),
        ("$5 x 3 = $15 a week", [("5 * 3", "15", True)]),
        ("50% * 30 = 15", [("50% * 30", "15", True)]),
        ("30 / 60 * 100 = 50%", [("30 / 60 * 100", "50%", True)]),
        ("30 / 60 = 50%", [("30 / 60", "50%", True)]),
        ("2(3 + 4) = 14", [("2(3 + 4)", "14", True)]),
        ("48/2 = <<48/2=24>>24 clips", [("48/2", "24", True)]),
        ("1 + 1 = 2, 1 + 1 = 2, 1+1=2", [("1 + 1", "2", True)]),
        ("5 = 5", []),
        ("5 + 5 = 5 + 5", []),
        ("x + 3 = 7", []),
        ("2x = 6 + 2", []),
        ("f(3) = 9 - 1", []),
        ("3 apples + 2 apples = 5 apples", []),
        ("3 + 4 = 7x", []),
        ("2^3 + 1 = 9", []),
        ("a >= 3 + 4", []),
        ("3 + 4 == 7", []),
        ("1 / 0 = 5", []),
        ("() + 3 = 3", []),
        ("__import__('os').system('true') + 1 = 2", []),
        ("9**9**9 = 1", []),
        ("", []),
        ("٣ + ٤ = ٧", []),
    ],
)
def test_steps(text: str, expected: list) -> None:
    assert [(s.left, s.right, s.holds) for s in steps(text)] == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("-2 - -3", 1),
        ("1 / 3", Fraction(1, 3)),
        ("8 / 2 / 2", 2),
        (".5 + 1.25", Fraction(7, 4)),
        ("50%", Fraction(1, 2)),
        ("", None),
        ("1 +", None),
        ("(1", None),
        ("1)", None),
        ("1 2", None),
        ("1 / (2 - 2)", None),
        ("1.2.3", None),
        ("9" * 41, None),
        ("(" * 150 + "1" + ")" * 40, None),
        ("a", None),
    ],
)
def test_value(expression: str, expected: object) -> None:
    assert value(expression) == expected


@given(st.lists(st.tuples(st.sampled_from("+-*/"), st.integers(1, 99)), min_size=1, max_size=8), st.integers(1, 99))
def test_value_is_pythons(parts: list[tuple[str, int]], first: int) -> None:
    text = str(first) + "".join(f" {op} {n}" for op, n in parts)
    exact = eval(re.sub(r"\d+", lambda m: f"Fraction({m[0]})", text), {"Fraction": Fraction})
    assert value(text) == exact


@pytest.mark.parametrize("text", ["=" * 1_000_000, "1+1=" * 250_000, "(" * 1_000_000, "1" * 1_000_000 + "=1+0"])
def test_huge_texts(text: str) -> None:
    assert len(steps(text)) <= MAX_STEPS


def test_steps_of_gsm8k(shared: Path) -> None:
    """The authors' own steps hold, and stop holding with another result."""
    rows = [json.loads(line) for line in (shared / "data/gsm8k/train.jsonl").read_text().splitlines()[:500]]
    found = [s for row in rows for s in steps(row["answer"])]
    written = sum(row["answer"].count("<<") for row in rows)
    assert len(found) > 0.8 * written
    assert sum(s.holds for s in found) / len(found) > 0.99
    plain = [re.sub(r"<<[^>]*>>", "", row["answer"]) for row in rows]
    wrong = [re.sub(r"= ?\$?([0-9]+)(?![0-9]|[^\n]*=)", lambda m: f"= {int(m[1]) + 7}", text) for text in plain]
    broken = [steps(text) for text in wrong]
    assert sum(all(s.holds for s in one) for one in broken if one) / len(rows) < 0.02


def test_math_reasoning() -> None:
    reward = get_reward_function("math_reasoning")
    texts = [
        "6 * 12 = 72 #### 72",
        "6 + 6 = 13, 13 - 1 = 12 #### 72",
        "#### 72",
        "6 * 12 = 72 #### 71",
        "1 + 1 = 2 " * 50,
        "",
        "72 or 73",
    ]
    assert reward.batch(texts, {"reference": ["72"] * 7}) == pytest.approx([1, 0.9, 0.8, 0, 0, 0, 0])
    assert reward.compute("#### 72", reference=None) is None
    loose = get_reward_function("math_reasoning", needs_answer=False, answer_weight=0.5)
    assert loose.compute("6 * 12 = 72 #### 71", reference="72") == 0.5
    assert share_that_holds("nothing") is None


def test_counterfactual_math() -> None:
    reward = get_reward_function("counterfactual_math")
    columns = {"reference": ["18"] * 4, "original": ["17", "17", None, "18.0"]}
    scores = CompositeReward([reward]).score_batch(["9 * 2 = 18 #### 18", "#### 17", "#### 17", "#### 18"], columns)
    assert scores.total == [1.0, 0.0, 0.0, None]
    assert scores.stats["counterfactual_math/original_answer"] == 1
    assert scores.stats["counterfactual_math/unchanged"] == 1


def test_nothing_beats_an_honest_solution(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "data/gsm8k/train.jsonl").read_text().splitlines()[:60]]
    gold = [row["answer"].rpartition("#### ")[2] for row in rows]
    noise = random.Random(0)
    attempts = {
        "echo": [row["question"] for row in rows],
        "true steps": ["1 + 1 = 2, 2 * 3 = 6 #### 3"] * len(rows),
        "other row": [rows[i - 7]["answer"] for i in range(len(rows))],
        "in noise": [" ".join([*noise.sample([str(i) for i in range(500)], 20), a, "x", "0.123"]) for a in gold],
    }
    reward = get_reward_function("math_reasoning")
    honest = reward.batch([row["answer"] for row in rows], {"reference": gold})
    assert sum(honest) / len(honest) > 0.95
    for name, texts in attempts.items():
        scores = reward.batch(texts, {"reference": gold})
        assert sum(scores) / len(scores) < 0.1, name
