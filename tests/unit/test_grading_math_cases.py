"""Equality of answers over a table of cases, and that no text reaches an evaluator in the caller's process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest

import math_cases
from aligntune.grading import quantity
from aligntune.grading.extract import final_answer
from aligntune.grading.forms import align, intervals
from aligntune.grading.math import _worker, grade, math_equal

HOSTILE = [
    "__import__('os').system('touch /tmp/hostile_math')",
    "().__class__.__bases__[0].__subclasses__()",
    "eval('1+11')",
    "exec('import os')",
    "open('/tmp/hostile_math','w')",
    "lambda: 12",
    "12 if True else 0",
    "[x for x in (12,)][0]",
    "exit()",
    r"\input{/etc/passwd}",
    r"\write18{touch /tmp/hostile_math}",
    r"\immediate\write18{touch /tmp/hostile_math}",
    r"\def\x{\x\x}\x",
    r"\catcode`\@=0",
    r"\text{__import__('os').system('touch /tmp/hostile_math')}",
    r"\operatorname{__import__('os').system('touch /tmp/hostile_math')}",
    r"Integer(__import__('os').getpid())",
    r"S('__import__(\"os\").system(\"touch /tmp/hostile_math\")')",
    r"\frac{__import__('os')}{1}",
    "\0\x01\x02",
    "\ud800\udfff",
    "١٢ 𝟏𝟐 ⑫",
    "%s%s%n",
    "12;rm -rf /tmp/hostile_math",
]
HEAVY = [
    r"\begin{pmatrix}" * 20,
    r"\sqrt" * 60,
    "{" * 150 + "}" * 150,
    "(" * 290,
    "\\" * 299,
    "x^" * 149,
]


def test_there_are_at_least_three_hundred_cases() -> None:
    rows = [(gold, answer) for group in math_cases.CASES.values() for gold, answer, _ in group]
    assert len(set(rows)) >= 300
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("group", list(math_cases.CASES))
def test_cases(group: str) -> None:
    wrong = [(g, a, equal) for g, a, equal in math_cases.CASES[group] if grade(g, a, 30).equal is not equal]
    assert not wrong


def test_equality_of_readable_answers_has_a_right_answer_in_itself() -> None:
    golds = {gold for group in math_cases.CASES.values() for gold, _, equal in group if equal is not None}
    assert not [gold for gold in golds if math_equal(gold, gold, 30) is not True]


def test_known_limits_are_as_described() -> None:
    assert not [(g, a, why) for g, a, said, why in math_cases.LIMITS if math_equal(g, a, 30) is not said]


def test_a_wrong_text_that_contains_the_right_number_is_wrong() -> None:
    right = [text for gold, text in math_cases.REWRITTEN if math_equal(gold, final_answer(text, gold), 30) is not False]
    assert not right
    assert len(math_cases.REWRITTEN) >= 40


@pytest.mark.parametrize(
    ("text", "value", "percent", "kind"),
    [
        ("2 1/2 hours", 2.5, False, "time"), ("$1.50", 1.5, False, "dollars"), ("12.5 %", 12.5, True, None),
        ("twenty-five", 25, False, None), ("three quarters", 0.75, False, None), ("2 dozen eggs", 24, False, None),
        ("-3\\times 10^{-2} km", -0.03, False, "length"), ("5\\text{ m}", 5, False, "length"), (".5", 0.5, False, None),
        ("60 miles per hour", 60, False, "length"), ("9 days a week", 9, False, None), ("3 square feet", 3, False, "length"),
    ],
)  # fmt: skip
def test_a_quantity_is_read(text: str, value: float, percent: bool, kind: str | None) -> None:
    found = quantity.read(text)
    assert found is not None
    assert (float(found.value), found.percent) == (value, percent)
    assert (found.unit.kind[0][0] if found.unit else None) == kind


@pytest.mark.parametrize(
    "text", ["5m", "2 pi", "12 or 13", "x", "12 13", "1/0", "12 + 1", "12 twelve", "\\sqrt{2}", "", "5!"]
)
def test_what_may_be_mathematics_is_no_quantity(text: str) -> None:
    assert quantity.read(text) is None


def test_inequalities_and_lists_take_the_gold_answers_form() -> None:
    assert intervals(r"3 > t \ge -1") == ("t", "[-1, 3)")
    assert intervals("x < 1 or y > 2") is None
    assert intervals("1 < 2") is None
    assert align("[0,1)", r"0 \leq x < 1") == ("[0,1)", "[0, 1)")
    assert align("1, 2", "x = 2 or x = 1") == ("1, 2", "2, 1")
    assert align("12", "12 or 13") == ("12", "12 or 13")


def test_no_text_reaches_an_evaluator_in_this_process() -> None:
    """An audit hook in a fresh interpreter sees every compilation, evaluation, import and new process while it grades."""
    script = (
        "import json, sys\n"
        "from aligntune.grading.extract import final_answer\n"
        "from aligntune.grading.math import math_equal\n"
        "texts, heavy = json.load(sys.stdin)\n"
        "for gold in ('12', 'x^2+1'):\n    math_equal(gold, '1+x^2', 30)\n"  # starts the worker, warms the caches
        "seen = []\n"
        "bad = ('compile', 'exec', 'import', 'os.system', 'os.exec', 'os.fork', 'socket.connect')\n"
        "on = [True]\n"
        "sys.addaudithook(lambda event, args: seen.append((event, str(args)[:80])) if on and event in bad else None)\n"
        "for text in texts:\n"
        "    for gold in ('12', 'x^2+1'):\n"
        "        for given in (text, final_answer('\\\\boxed{' + text + '}', gold)):\n"
        "            assert math_equal(gold, given, 1) is False, (gold, given)\n"
        "for text in heavy:\n    assert math_equal('12', text, 0.5) is False\n"
        "on.clear()\n"
        "print(json.dumps(seen), [n for n in ('sympy', 'math_verify', 'latex2sympy2_extended') if n in sys.modules])\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([HOSTILE, HEAVY]),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[] []"


def test_the_worker_that_reads_texts_can_neither_write_nor_connect_nor_start_anything() -> None:
    assert math_equal("x^2+1", "1+x^2", 30) is True
    with open(f"/proc/{_worker.pid}/status") as file:
        status = dict(line.split(":", 1) for line in file if ":" in line)
    if status["Seccomp"].strip() != "2":
        pytest.skip("this system has no landlock or no seccomp")
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["CapEff"], 16) == 0


def test_deadlines_hold_for_several_threads_at_once() -> None:
    found: list[str] = []
    bombs = ["5^{5^{5^{5^5}}}", "10^{10^{10}}"] * 2
    threads = [threading.Thread(target=lambda b=b: found.append(grade("3", b, deadline=0.5).how)) for b in bombs]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == ["timeout"] * 4
    assert time.monotonic() - started < 120
    assert grade("x^2+1", "1+x^2", 30).equal is True
