"""Equality of answers: against values, against Math-Verify, against hostile expressions, and on real GSM8K solutions."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aligntune.grading import math as grading
from aligntune.grading.extract import final_answer
from aligntune.grading.math import gold_answer, grade, math_equal

BOMBS = ["5^{5^{5^{5^5}}}", "10^{10^{10}}", "((99999999999)!)!"]


@pytest.mark.parametrize(
    ("gold", "answer", "equal", "how"),
    [
        ("72", "72", True, "number"),
        ("72", "$72.00", True, "number"),
        ("1,234", "1234", True, "number"),
        ("1234", "1{,}234", True, "number"),
        ("-5", "− 5", True, "number"),
        ("12", "12 apples", True, "number"),
        ("12", r"12 \text{ apples}", True, "number"),
        ("12", "12 thousand", False, "number"),
        ("12000", "12 thousand", True, "number"),
        ("24", "2 dozen eggs", True, "number"),
        ("5", "x = 5", True, "number"),
        ("50", "50%", True, "number"),
        ("50%", "0.5", True, "number"),
        ("0.5", "5%", False, "number"),
        ("1/2", "0.5", True, "number"),
        (r"\frac{3}{4}", "6/8", True, "number"),
        ("1e-3", "0.001", True, "number"),
        ("2", "2.001", False, "number"),
        ("2", "2.0000001", True, "number"),
        ("2", "2 pi", False, "math_verify"),
        ("1/3", "0.33", False, "number"),
        (r"\frac12", "0.5", True, "number"),
        ("x^2+1", "1+x^2", True, "math_verify"),
        (r"2\sqrt{3}", r"\sqrt{12}", True, "math_verify"),
        ("x<5", r"(-\infty,5)", True, "math_verify"),
        ("(1,2)", "(2,1)", False, "math_verify"),
        (r"\{1,2\}", r"\{2,1\}", True, "math_verify"),
        ("(1,2)", "(1, 2)", True, "exact"),
        ("silent", "listen", False, "words"),
        ("Paris", r"\text{paris}", True, "words"),
        ("no", "on", False, "words"),
        ("12", "12 or 13", False, "hedge"),
        ("12", "x=13=12", False, "hedge"),
        ("12", None, False, "no_answer"),
        ("12", " ", False, "no_answer"),
        ("12", "1" * 301, False, "long"),
        ("", "12", None, "gold_unparseable"),
        ("???", "12", None, "gold_unparseable"),
        (None, "12", None, "gold_unparseable"),
        (72, 72.0, True, "number"),
    ],
)
def test_grade(gold: str, answer: str, equal: bool | None, how: str) -> None:
    verdict = grade(gold, answer)
    assert (verdict.equal, verdict.how) == (equal, how)


def test_the_fast_path_agrees_with_math_verify() -> None:
    """On plain numbers both give one verdict, so that the cheap way changes nothing."""
    values = [
        "0",
        "1",
        "-1",
        "12",
        "12.0",
        "12.5",
        "0.333333",
        "0.3333333",
        "100",
        "3.14",
        "3.141",
        "1/2",
    ]
    for gold in values:
        for answer in values:
            quick = grading._quick(gold, answer)
            if quick is not None:
                assert quick.equal == grading._by_worker(gold, answer, 20).equal, (gold, answer)


@pytest.mark.parametrize("bomb", BOMBS[:2])
def test_the_deadline_holds_in_a_thread(bomb: str) -> None:
    found: list[grading.Grade] = []
    thread = threading.Thread(target=lambda: found.append(grade("3", bomb, deadline=0.5)), daemon=True)
    thread.start()
    thread.join(60)
    assert [(g.equal, g.how) for g in found] == [(False, "timeout")]
    assert grade("x^2+1", "1+x^2").equal is True  # the next worker is sound


def test_hostile_text_is_graded_wrong_and_never_raises() -> None:
    for answer in [
        "__import__('os').system('true')",
        "\\" * 300,
        "{" * 300,
        "\0",
        "\ud800",
        "١٢",
        "9" * 300,
        "\\sqrt" * 40,
    ]:
        assert math_equal("12", answer, deadline=5) is False


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("x #### 72", "72"), (r"thus \boxed{\frac12}", r"\frac12"), (72, "72"), (0.5, "0.5"), ("  5 ", "5"), (True, None),
     ("a" * 301, None), ("word " * 80 + "the answer is 5", "5"), (None, None)],
)  # fmt: skip
def test_gold_answer(gold: object, answer: str | None) -> None:
    assert gold_answer(gold) == answer


def test_agrees_with_the_labels_of_real_solutions(shared: Path) -> None:
    """1,200 model solutions to GSM8K problems, each labelled right or wrong by the data set's authors."""
    checked = 0
    for line in (shared / "data/gsm8k/example_model_solutions.jsonl").read_text().splitlines():
        row = json.loads(line)
        gold = final_answer(row["ground_truth"])
        for solution in (v for v in row.values() if isinstance(v, dict)):
            assert math_equal(gold, final_answer(solution["solution"], gold)) is solution["is_correct"], solution[
                "solution"
            ]
            checked += 1
    assert checked == 1200


def test_every_gsm8k_answer_is_right_for_itself(shared: Path) -> None:
    for line in (shared / "data/gsm8k/train.jsonl").read_text().splitlines():
        answer = json.loads(line)["answer"]
        assert grade(answer, final_answer(answer)) == grading.Grade(True, "number")


def test_imports_nothing_heavy_and_leaves_no_process() -> None:
    """The grader's process is not the caller's: sympy is never imported here, and the worker ends with the interpreter."""
    script = (
        "import sys, aligntune.grading.math as m\n"
        "assert m.math_equal('x^2+1', '1+x^2') is True\n"
        "print(m._worker.pid, [n for n in ('sympy', 'math_verify', 'torch', 'numpy') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120).stdout
    pid, loaded = out.split(" ", 1)
    assert loaded.strip() == "[]"
    assert not Path(f"/proc/{pid}").exists()
