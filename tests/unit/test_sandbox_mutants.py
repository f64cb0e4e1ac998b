"""Single faults in canonical solutions: the sandbox passes no mutant that the published tests, run plainly, would fail.

A mutant that passes is either equivalent to the canonical solution or not told apart by the published tests. Both are
shown by a plain run of program and tests in an interpreter of its own (the mutants come from trusted programs): it
must pass there too. What is left is the share of mutants that the tests kill at all.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aligntune.grading.sandbox import CodeResult, SafeCodeExecutor, SandboxUnavailable
from mutants import mutants

Job = dict[str, Any]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SafeCodeExecutor]:
    with SafeCodeExecutor(timeout=3.0) as executor:
        try:
            _ = executor.level
        except SandboxUnavailable as missing:
            pytest.skip(str(missing))
        yield executor


def human_eval(shared: Path) -> list[tuple[str, str, Job]]:
    lines = (shared / "data/human_eval/HumanEval.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return [
        (r["task_id"], r["prompt"] + r["canonical_solution"],
         {"tests": [r["test"]], "entry_point": r["entry_point"], "check": True}) for r in rows
    ]  # fmt: skip


def mbpp(shared: Path) -> list[tuple[str, str, Job]]:
    lines = (shared / "data/mbpp/mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        (f"MBPP/{r['task_id']}", r["code"], {"tests": r["test_list"], "setup": r.get("test_setup_code") or ""})
        for r in rows
    ]


def passes_plainly(program: str, job: Job) -> bool:
    """Whether program and tests together end well in an interpreter of their own."""
    call = f"\ncheck({job['entry_point']})" if job.get("check") else ""
    source = "\n".join([program, job.get("setup", ""), *job["tests"]]) + call
    try:
        return (
            subprocess.run(
                [sys.executable, "-I", "-"], input=source.encode(), capture_output=True, timeout=20
            ).returncode
            == 0
        )
    except subprocess.TimeoutExpired:
        return False


def judged(
    executor: SafeCodeExecutor, problems: list[tuple[str, str, Job]], each: int
) -> list[tuple[str, str, Job, CodeResult]]:
    rng = random.Random(0)
    made = []
    for name, program, job in problems:
        found = mutants(program)
        made += [(f"{name} {what}", text, job) for what, text in rng.sample(found, min(each, len(found)))]
    results = executor.run_many({"program": text, **job} for _, text, job in made)
    return [(*row, result) for row, result in zip(made, results, strict=True)]


def check(rows: list[tuple[str, str, Job, CodeResult]], least: float) -> None:
    survivors = [row for row in rows if row[3].verdict == "passed"]
    assert not [name for name, text, job, _ in survivors if not passes_plainly(text, job)]
    killed = 1 - len(survivors) / len(rows)
    print(f"{len(rows)} mutants, {killed:.1%} killed, survivors: {[row[0] for row in survivors]}")
    assert killed >= least


def test_mutants_are_made_one_fault_at_a_time() -> None:
    made = dict(mutants("def f(x):\n    if not x and x < 2:\n        return x + 1\n    return True\n"))
    assert made["line 3: Add to Sub"].endswith("return x - 1\n    return True")
    assert {what.split(": ")[1] for what in made} == {
        "And to Or", "Lt to LtE", "2 to 3", "not left out", "Add to Sub", "1 to 2", "return None", "True to False"
    }  # fmt: skip


def test_mutants_of_thirty_programs(sandbox: SafeCodeExecutor, shared: Path) -> None:
    problems = random.Random(1).sample(human_eval(shared), 20) + random.Random(1).sample(mbpp(shared), 10)
    check(judged(sandbox, problems, 2), 0.85)


@pytest.mark.slow
@pytest.mark.parametrize("problems", [human_eval, mbpp])
def test_mutants_of_every_program(sandbox: SafeCodeExecutor, shared: Path, problems: Any) -> None:
    """Ten mutants of each of HumanEval's 164 programs and three of each of MBPP's."""
    rows = problems(shared)
    check(judged(sandbox, rows, 10 if problems is human_eval else 3), 0.85)
