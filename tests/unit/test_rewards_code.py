"""Rewards that run programs: right, wrong, hostile, and the forms in which answers come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aligntune.errors import RewardError
from aligntune.grading.code import blocks, program
from aligntune.rewards import CompositeReward, RewardConfig, build_rewards, get_reward_function

TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add(0, 0) == 0", "assert add(5, 5) == 10"]
RIGHT = "def add(a, b):\n    return a + b\n"
FENCED = f"It adds.\n```python\n{RIGHT}```"


def test_the_program_is_the_last_python_block_after_the_thought() -> None:
    assert program(FENCED) == RIGHT
    assert program(RIGHT) == RIGHT
    assert program(f"```python\nx = 1\n```\nor\n```py\n{RIGHT}```\n```json\n{{}}\n```") == RIGHT
    assert program(f"```\n{RIGHT}```") == RIGHT
    assert program(f"<think>```python\nx = 1\n```</think>{RIGHT}") == RIGHT
    assert len(blocks("```x\n" * 300_000)) == 0
    assert blocks("```python\nx = 1\n") == []
    assert blocks("```json\n{}\n```") == []
    assert program("    return a + b\n", "def add(a, b):\n", "add") == RIGHT
    assert program(FENCED, "def add(a, b):\n", "add") == RIGHT
    assert program("x", "Write add.", "add") == "x"


@pytest.mark.parametrize(
    ("text", "share", "all_of_it"),
    [
        (FENCED, 1.0, 1.0),
        (RIGHT, 1.0, 1.0),
        ("def add(a, b):\n    return 0", 0.5, 0.0),
        ("def add(a, b):\n    return a + b + 1", 0.0, 0.0),
        ("def add(a, b", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("I cannot do that.", 0.0, 0.0),
        ("print('passed')\nimport os\nos._exit(0)", 0.0, 0.0),
        ("class E:\n    def __eq__(self, o): return True\ndef add(a, b): return E()", 0.0, 0.0),
        ("漢字かな \ud800 \0", 0.0, 0.0),
        ("#" * 1_000_000, 0.0, 0.0),
    ],
)
def test_execution_and_correctness(text: str, share: float, all_of_it: float) -> None:
    for name, score in (("code_execution", share), ("code_correctness", all_of_it)):
        reward = get_reward_function(name, timeout=20)
        assert reward.compute(text, test_list=TESTS) == score
        assert reward.batch([text], {"test_list": [TESTS]}) == [score]


def test_humaneval_and_setup_and_no_tests() -> None:
    reward = get_reward_function("code_execution", timeout=20)
    check = "def check(candidate):\n    assert candidate(2) == 4\n"
    columns = {"test": check, "entry_point": "double", "prompt": "def double(x):\n"}
    assert reward.compute("    return 2 * x", **columns) == 1.0
    assert reward.compute("    return x", **columns) == 0.0
    assert reward.compute(RIGHT, test_list=["assert add(n, 1) == 8"], test_setup_code="n = 7") == 1.0
    composite = build_rewards([RewardConfig(type="code_execution")])
    assert isinstance(composite, CompositeReward)
    scores = composite.score_batch([RIGHT], {})
    assert scores.total == [None]
    assert scores.stats["code_execution/no_tests"] == 1
    with pytest.raises(RewardError, match="test_list is str, not list"):
        reward.batch([RIGHT], {"test_list": ["assert add(1, 2) == 3"]})


def test_slow_programs_are_counted() -> None:
    composite = build_rewards([RewardConfig(type="code_correctness", params={"timeout": 0.5})])
    scores = composite.score_batch(["while True: pass"], {"test_list": [TESTS]})
    assert scores.total == [0.0]
    assert scores.stats["code_correctness/timeout"] == 1


def test_standard_input_and_output() -> None:
    text = "a, b = map(int, input().split())\nprint(a + b)"
    cases = [{"input": "1 2", "output": "3\n"}, ["5 5", "10"], ["1 1", "3"]]
    assert get_reward_function("stdio_tests", timeout=20).compute(text, cases=cases) == pytest.approx(2 / 3)
    assert get_reward_function("stdio_tests", timeout=20, partial=False).compute(text, cases=cases) == 0.0
    assert get_reward_function("stdio_tests", timeout=20, partial=False).compute(text, cases=cases[:2]) == 1.0
    with pytest.raises(RewardError, match="no pair of input and output"):
        get_reward_function("stdio_tests").batch([text], {"cases": [["1"]]})


@pytest.mark.parametrize(
    ("text", "score"), [(FENCED, 1.0), ("x = ", 0.0), ("", 0.0), ("```python\n\n```", 0.0), ("not " * 30000 + "1", 0.0)]
)
def test_syntax(text: str, score: float) -> None:
    assert get_reward_function("code_syntax").compute(text) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("```python\n" + RIGHT + "```", 1.0),
        ("```python\ndef add(a, b):\n    return 0\n```", 0.5),
        ("```python\ndef add(a, b):\n    return 9\n```", -0.10),
        ("```python\ndef add(a, b)\n```", -0.15),
        ("```python\nwhile True: pass\n```", -0.25),
        ("def add(a, b):\n    return 9\n", -0.12),
        ("```python\nx\n```\n```python\ndef add(a, b):\n    return 9\n```\nDone.", -0.14),
    ],
)
def test_mbpp(text: str, score: float) -> None:
    reward = get_reward_function("mbpp_reward", timeout=1 if "while" in text else 20)
    assert reward.compute(text, test_list=TESTS) == pytest.approx(score)


def test_mbpp_parameters() -> None:
    lines = "\n".join(f"    x{i} = {i}" for i in range(30))
    text = f"def add(a, b):\n{lines}\n    return a + b\n"
    assert get_reward_function("mbpp_reward", timeout=20).compute(text, test_list=TESTS) == pytest.approx(0.98)
    kept = get_reward_function("mbpp_reward", timeout=20, format_fault=0.5, brevity=0.1, brevity_lines=4)
    assert kept.compute(RIGHT, test_list=TESTS) == pytest.approx(1 - 0.5 + 0.1 * 0.5)
    low = get_reward_function("mbpp_reward", timeout=20, none_passed=-0.4, format_fault=0.5)
    assert low.compute("def add(a, b):\n    return 9", test_list=TESTS) == -0.5


def test_real_rows(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "data/mbpp/mbpp.jsonl").read_text().splitlines()[:8]]
    reward = get_reward_function("code_correctness", timeout=30)
    columns = {"test_list": [r["test_list"] for r in rows]}
    assert reward.batch([f"```python\n{r['code']}\n```" for r in rows], columns) == [1.0] * 8
    assert reward.batch([rows[0]["code"]] * 8, columns) == [1.0] + [0.0] * 7
