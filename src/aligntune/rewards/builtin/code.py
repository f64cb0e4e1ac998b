r"""Rewards that run the program of a text: `code_execution`, `code_correctness`, `stdio_tests` and their kin.

    tests = ["assert add(1, 2) == 3"]
    answer = "```python\ndef add(a, b):\n    return a + b\n```"
    get_reward_function("code_execution").compute(answer, test_list=tests)         # 1.0

The program is the text's last fenced block, or the whole text. It runs in the sandbox (`aligntune.grading.sandbox`),
away from the tests and from this process; what it prints or returns decides nothing but its tests. The programs of a
batch run side by side. A row without tests scores None and is counted (`no_tests`); verdicts are counted by name.

Source: MBPP (Austin et al. 2021, arXiv:2108.07732), HumanEval (Chen et al. 2021, arXiv:2107.03374). Python;
`stdio_tests` runs other languages too where their interpreter is installed.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from aligntune.grading.code import Tests, blocks, judge, program, read_tests, sandbox
from aligntune.grading.sandbox.languages import Language
from aligntune.rewards.base import count, reward

Require = Literal["strong", "full", "weak"]
TIMEOUT = 5.0
"""Seconds: the order of the published harnesses (3 for HumanEval, 10 for MBPP)."""
AT_ONCE = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""Programs of a batch under way at the same time: one for each processor, so that none loses its time to the others."""


async def _run(
    text: str,
    tests: Tests,
    timeout: float,
    require: Require,
    prompt: Any = None,
    *,
    language: Language = "python",
    interpreter: str | None = None,
) -> tuple[float, str] | None:
    """Share of the tests that the text's program passes, and the verdict; None without tests."""
    if not tests:
        count("no_tests")
        return None
    source = program(text, prompt, tests.entry_point, language)
    result = await asyncio.to_thread(
        judge, source, tests, timeout=timeout, require=require, language=language, interpreter=interpreter
    )
    if result.verdict != "passed":
        count(result.verdict)
    return result.passed / result.total, result.verdict


@reward("code_execution", kind="verifiable", concurrency=AT_ONCE)
async def code_execution(
    text: str,
    test_list: Any = None,
    test: Any = None,
    entry_point: Any = None,
    test_setup_code: Any = None,
    prompt: Any = None,
    *,
    timeout: PositiveFloat = TIMEOUT,
    require: Require = "strong",
) -> float | None:
    """Share of the row's tests that the program passes.

    Args:
        test_list: asserts, each one test (MBPP).
        test: source that defines `check(candidate)`, one test (HumanEval).
        entry_point: the function under test.
        test_setup_code: trusted source that runs before the tests.
        prompt: where it is the beginning of the program, the text goes on with it.
        timeout: seconds for the program and all its tests.
        require: the least isolation that is accepted.

    >>> get_reward_function("code_execution").compute(
    ...     "def f():\\n    return 5", test_list=["assert f() == 5", "assert f() == 6"]
    ... )
    0.5
    """
    run = await _run(text, read_tests(test_list, test, entry_point, test_setup_code), timeout, require, prompt)
    return None if run is None else run[0]


@reward("code_correctness", kind="verifiable", concurrency=AT_ONCE)
async def code_correctness(
    text: str,
    test_list: Any = None,
    test: Any = None,
    entry_point: Any = None,
    test_setup_code: Any = None,
    prompt: Any = None,
    *,
    timeout: PositiveFloat = TIMEOUT,
    require: Require = "strong",
) -> float | None:
    """1 if the program passes every test of the row, else 0; the arguments are those of `code_execution`.

    >>> get_reward_function("code_correctness").compute(
    ...     "def f():\\n    return 5", test_list=["assert f() == 5", "assert f() == 6"]
    ... )
    0.0
    """
    run = await _run(text, read_tests(test_list, test, entry_point, test_setup_code), timeout, require, prompt)
    return None if run is None else float(run[1] == "passed")


@reward("stdio_tests", kind="verifiable", concurrency=AT_ONCE)
async def stdio_tests(
    text: str,
    cases: Any,
    *,
    timeout: PositiveFloat = TIMEOUT,
    require: Require = "strong",
    partial: bool = True,
    language: Language = "python",
    interpreter: str | None = None,
) -> float | None:
    """Share of cases in which the program's whole output is the expected one.

    Args:
        cases: pairs of standard input and output, as lists or mappings with `input` and `output`.
        timeout: seconds for each case.
        require: the least isolation that is accepted.
        partial: False gives 1 for all cases and 0 for fewer.
        language: what the program is written in; others than Python need their interpreter on this machine.
        interpreter: the interpreter's absolute path, in place of the first on PATH.

    >>> get_reward_function("stdio_tests").compute("print(int(input()) + 1)", cases=[["1", "2"], ["2", "4"]])
    0.5
    """
    tests = read_tests(cases=cases)
    run = await _run(text, tests, timeout, require, language=language, interpreter=interpreter)
    if run is None:
        return None
    return run[0] if partial else float(run[1] == "passed")


@reward("code_syntax", kind="verifiable")
def code_syntax(text: str, *, require: Require = "strong") -> float:
    """1 if the program is not empty and parses, else 0; parsed in the sandbox, because some texts crash the parser.

    Args:
        require: the least isolation that is accepted.

    >>> get_reward_function("code_syntax").compute("def f(:")
    0.0
    """
    source = program(text)
    return float(bool(source.strip()) and sandbox(require).parses(source).verdict == "passed")


@reward("mbpp_reward", kind="verifiable", range=(-0.5, 1.0), concurrency=AT_ONCE)
async def mbpp_reward(
    text: str,
    test_list: Any = None,
    test_setup_code: Any = None,
    *,
    none_passed: float = -0.10,
    not_run: float = -0.15,
    timed_out: float = -0.25,
    format_fault: NonNegativeFloat = 0.02,
    brevity: NonNegativeFloat = 0.02,
    brevity_lines: PositiveInt = 20,
    timeout: PositiveFloat = TIMEOUT,
    require: Require = "strong",
) -> float | None:
    """Share of tests passed, with small penalties for how a program failed and for its form, within [-0.5, 1].

    Args:
        test_list: asserts, each one test.
        test_setup_code: trusted source that runs before the tests.
        none_passed: the score where it runs and passes no test.
        not_run: the score where it does not parse, load or end by itself.
        timed_out: the score where it is too slow.
        format_fault: taken off for each of: no fenced block, several of them, text after the last.
        brevity: added to a program that passes every test, in full for none of `brevity_lines` lines, falling to 0.
        brevity_lines: lines, blank ones aside, from which nothing is added.
        timeout: seconds for the program and all its tests.
        require: the least isolation that is accepted.

    >>> get_reward_function("mbpp_reward").compute(
    ...     "```python\\ndef f():\\n    return 5\\n```", test_list=["assert f() == 6"]
    ... )
    -0.1
    """
    run = await _run(text, read_tests(test_list, test_setup_code=test_setup_code), timeout, require)
    if run is None:
        return None
    share, verdict = run
    score = {"timeout": timed_out, "error": not_run, "refused": not_run}.get(verdict, share if share else none_passed)
    found = blocks(text)
    faults = [not found, len(found) > 1, bool(found) and not text.rstrip().endswith("```")]
    score -= format_fault * sum(faults)
    if verdict == "passed":
        lines = sum(bool(line.strip()) for line in program(text).splitlines())
        score += brevity * max(0.0, 1 - lines / brevity_lines)
    return max(-0.5, min(1.0, score))
