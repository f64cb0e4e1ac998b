"""The code sandbox: right programs pass, and hostile ones are contained at every level that this system offers."""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

import hostile
from aligntune.errors import ConfigurationError
from aligntune.grading.sandbox import CodeResult, SafeCodeExecutor, SandboxUnavailable, TimeoutException
from aligntune.grading.sandbox.wire import WireError, pack, unpack

RIGHT = "def f(x):\n    return 3 * x + 1"
TESTS = [f"assert f({x}) == {3 * x + 1}" for x in (1, 7, -2, 1000)]
LIMIT = 2.0


@pytest.fixture(scope="module", params=["full", "strong"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[SafeCodeExecutor]:
    os.environ["SANDBOX_SECRET"] = "a token"
    with SafeCodeExecutor(level=request.param, require=request.param, timeout=LIMIT, memory_mb=256) as executor:
        try:
            _ = executor.level
        except SandboxUnavailable as missing:
            pytest.skip(str(missing))
        yield executor
    del os.environ["SANDBOX_SECRET"]


def processes(executor: SafeCodeExecutor) -> set[int]:
    """Process ids below the zygote."""
    assert executor._programs is not None
    assert executor._programs._process is not None
    root = executor._programs._process.pid
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1])
    found: set[int] = set()
    for pid in parents:
        at = pid
        while at in parents and at != root:
            at = parents[at]
        if at == root and pid != root:
            found.add(pid)
    return found


def test_a_right_program_passes_and_a_wrong_one_does_not(sandbox: SafeCodeExecutor) -> None:
    good = sandbox.run_tests(RIGHT, TESTS)
    assert (good.verdict, good.passed, good.total, good.detail) == ("passed", 4, 4, "")
    bad = sandbox.run_tests("def f(x):\n    return 4", TESTS)
    assert (bad.verdict, bad.passed, bad.total) == ("failed", 1, 4)
    assert bad.detail == "test 2 does not hold"


@pytest.mark.parametrize("name", list(hostile.HOSTILE))
def test_a_hostile_program_is_contained(sandbox: SafeCodeExecutor, name: str, tmp_path: Path) -> None:
    before = set(os.listdir("/tmp")) | set(os.listdir("/dev/shm"))
    started = time.monotonic()
    result = sandbox.run_tests(hostile.HOSTILE[name], TESTS)
    assert time.monotonic() - started < LIMIT + 8.0
    assert result.verdict != "passed"
    assert result.passed <= 1
    made = (set(os.listdir("/tmp")) | set(os.listdir("/dev/shm"))) - before
    assert not [m for m in made if "hostile" in m]
    assert sandbox.run_tests(RIGHT, TESTS, timeout=20).verdict == "passed"
    deadline = time.monotonic() + 5
    while processes(sandbox) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not processes(sandbox)


def test_there_are_at_least_ninety_hostile_programs() -> None:
    assert len(hostile.HOSTILE) >= 90


def test_hostile_programs_side_by_side_do_not_disturb_right_ones(sandbox: SafeCodeExecutor) -> None:
    names = random.Random(0).sample(sorted(hostile.VERDICT), 12)
    jobs = [
        {"program": RIGHT if i % 2 else hostile.VERDICT[n], "tests": TESTS, "timeout": 20} for i, n in enumerate(names)
    ]
    results = sandbox.run_many(jobs, workers=4)
    assert [r.verdict == "passed" for r in results] == [bool(i % 2) for i in range(12)]


def test_plain_values_cross_and_come_back_equal() -> None:
    values = [
        None, True, 0, -5, 2**60, -(2**4000), 1.5, -0.0, math.inf, "text \ud800 é", b"\x00\xff", 1 + 2j, [1, [2]], (1, (2,)),
        {1, "a"}, frozenset({2}), {"a": 1, (1, 2): [3]}, range(1, 9, 2), deque([1, 2]), Decimal("1.10"), Fraction(1, 3),
        date(2026, 1, 2), datetime(2026, 1, 2, 3, 4, 5),
    ]  # fmt: skip
    for value in values:
        back = unpack(pack(value))
        assert back == value
        assert type(back) is type(value)
    assert unpack(pack(Counter("aab"))) == {"a": 2, "b": 1}
    assert unpack(pack(OrderedDict(b=1))) == {"b": 1}
    assert math.isnan(unpack(pack(math.nan)))


@pytest.mark.parametrize(
    "document",
    [{"x": 1}, {"i": "zz"}, {"s": [[1]]}, {"d": [1]}, {"d": [[[1], 2]]}, {"f": 3}, {"a": 1, "b": 2}, 1.5, {"D": "x"},
     {"r": "1,2,0"}, {"t": 4}, {"y": "2026-99-99"}, {"i": "f" * 20000}, {1: 2}],
)  # fmt: skip
def test_a_made_up_document_is_refused(document: object) -> None:
    with pytest.raises(WireError):
        unpack(document)


def test_what_cannot_cross_is_named() -> None:
    class Own(int):
        pass

    for value, words in (
        (Own(1), "type Own"),
        (2**20000, "bits"),
        (object(), "type object"),
        (iter([]), "list_iterator"),
    ):
        with pytest.raises(WireError, match=words):
            pack(value)
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(WireError, match="deep"):
        pack(deep)


def test_exceptions_of_builtin_types_reach_the_tests(sandbox: SafeCodeExecutor) -> None:
    program = "def f(x):\n    if x < 0:\n        raise ValueError('negative')\n    return x"
    test = "try:\n    f(-1)\nexcept ValueError as e:\n    assert str(e) == 'negative'\nelse:\n    assert False"
    assert sandbox.run_tests(program, [test]).verdict == "passed"
    own = "class Own(Exception): pass\ndef f(x):\n    raise Own"
    assert sandbox.run_tests(own, [test]).detail.startswith("test 1: CandidateError: f raised Own")


def test_arguments_changed_in_place_are_changed_for_the_test(sandbox: SafeCodeExecutor) -> None:
    program = "def f(a, d):\n    a.sort()\n    d['n'] = len(a)"
    assert sandbox.run_tests(program, ["a, d = [3, 1], {}\nf(a, d)\nassert a == [1, 3] and d == {'n': 2}"]).passed == 1


def test_a_builtin_belongs_to_the_program_only_where_it_is_the_subject(sandbox: SafeCodeExecutor) -> None:
    assert sandbox.run_tests("def sum(a, b):\n    return a + b", ["assert sum(10, 15) == 25"]).verdict == "passed"
    cheat = "def f(x):\n    return [0]\ndef all(x):\n    return True\ndef len(x):\n    return 4"
    assert sandbox.run_tests(cheat, ["assert all(v == 1 for v in f(1)) and len(f(1)) == 4"]).verdict == "failed"
    named = sandbox.run_tests("def max(a):\n    return 7", ["assert candidate([1]) == 7"], entry_point="max")
    assert named.verdict == "passed"


def test_objects_of_the_program_are_built_read_and_passed_by_number(sandbox: SafeCodeExecutor) -> None:
    program = (
        "class Node:\n    def __init__(self, v):\n        self.v, self.next = v, None\n    def double(self):\n"
        "        return 2 * self.v\n    def __eq__(self, other):\n        return True\n"
        "def total(n):\n    s = 0\n    while n is not None:\n        s, n = s + n.v, n.next\n    return s\n"
    )
    setup = "a, b = Node(1), Node(2)\na.next = b"
    tests = ["assert total(a) == 3", "assert a.next.v == 2 and b.double() == 4", "assert a == a and a != b"]
    assert sandbox.run_tests(program, tests, setup=setup).verdict == "passed"
    assert sandbox.run_tests(program, ["assert a == 5"], setup=setup).verdict == "failed"
    assert sandbox.run_tests("def f(t):\n    return t('5')", ["assert f(int) == 5 and f(float) == 5.0"]).passed == 1


def test_scripts_are_compared_in_full(sandbox: SafeCodeExecutor) -> None:
    double = "import sys\nfor line in sys.stdin:\n    print(int(line) * 2)"
    cases = [("1\n2\n", "2\n4\n"), ("", ""), ("5", "10   \n\n")]
    assert sandbox.run_script(double, cases).verdict == "passed"
    assert sandbox.run_script("print(2)", [("1\n2\n", "2\n4\n")]).verdict == "failed"
    assert sandbox.run_script("print(2)\nprint(4)\nprint('more')", [("1\n2\n", "2\n4\n")]).verdict == "failed"
    assert sandbox.run_script("print(2)\nprint(4)\nraise ValueError", [("1\n2\n", "2\n4\n")]).verdict == "error"
    assert sandbox.run_script("print(2)\nprint(4)\nraise SystemExit", [("1\n2\n", "2\n4\n")]).verdict == "passed"
    assert sandbox.run_script("print(open(0).read().strip())", [("é" * 200_000, "é" * 200_000)]).verdict == "passed"
    assert sandbox.run_script("while True: print('x' * 9999)", [("", "x")]).verdict == "failed"
    late = sandbox.run_script("while True: pass", [("", "x")], timeout=0.5)
    assert late.verdict == "timeout"
    with pytest.raises(TimeoutException):
        late.check()


def test_source_is_parsed_away_from_the_caller(sandbox: SafeCodeExecutor) -> None:
    assert sandbox.parses("x = 1").verdict == "passed"
    broken = sandbox.parses("def f(:")
    assert (broken.verdict, broken.detail.partition(":")[0]) == ("error", "SyntaxError")
    assert sandbox.parses("import os\nos._exit(3)").verdict == "passed"  # it is not run
    assert sandbox.parses(hostile.TEXT["nested brackets"]).verdict == "error"


def test_threads_share_one_executor(sandbox: SafeCodeExecutor) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(sandbox.run_tests, RIGHT, TESTS, timeout=20) for _ in range(12)]
        assert {run.result().verdict for run in runs} == {"passed"}


def test_the_interpreters_come_back_after_they_were_killed(sandbox: SafeCodeExecutor) -> None:
    assert sandbox._programs is not None
    assert sandbox._programs._process is not None
    sandbox._programs._process.kill()
    sandbox._programs._process.wait()
    assert sandbox.run_tests(RIGHT, TESTS, timeout=20).verdict == "passed"


def test_nothing_of_it_stays_open() -> None:
    with SafeCodeExecutor(require="weak", timeout=20) as executor:
        executor.run_tests(RIGHT, TESTS)
        before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(3):
            executor.run_tests(RIGHT, TESTS)
            executor.run_script("print(1)", [("", "1")])
            executor.parses("x")
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (before, threads)


def test_less_isolation_than_required_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="level weak is below the required strong"):
        SafeCodeExecutor(level="weak")
    monkeypatch.setattr("aligntune.grading.sandbox.executor._acts", lambda server: {"open a socket": "allowed"})
    with pytest.raises(SandboxUnavailable, match=r"a test program could: .*strong: open a socket") as caught:
        _ = SafeCodeExecutor().level
    assert "require='weak'" in caught.value.hint


def human_eval(shared: Path) -> list[dict[str, str]]:
    import json

    folder = shared / "data" / "human_eval"
    path = next(folder.glob("*.jsonl"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def run_problem(executor: SafeCodeExecutor, problem: dict[str, str], body: str) -> CodeResult:
    return executor.run_tests(
        problem["prompt"] + body, [problem["test"]], entry_point=problem["entry_point"], check=True, timeout=30
    )


def test_canonical_solutions_of_humaneval_pass_and_mutants_fail(sandbox: SafeCodeExecutor, shared: Path) -> None:
    problems = human_eval(shared)
    assert len(problems) > 100
    failed = [
        (p["task_id"], r.detail)
        for p in problems
        if (r := run_problem(sandbox, p, p["canonical_solution"])).verdict != "passed"
    ]
    assert not failed
    mutants = [p for p in problems[::8] if run_problem(sandbox, p, "    return None\n").verdict == "passed"]
    assert not mutants


def mbpp_failures(executor: SafeCodeExecutor, shared: Path, step: int) -> dict[int, CodeResult]:
    import json

    text = (shared / "data" / "mbpp" / "mbpp.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()][::step]
    jobs = [
        {
            "program": r["code"],
            "tests": [*r["test_list"], *(r.get("challenge_test_list") or [])],
            "setup": r.get("test_setup_code") or "",
            "timeout": 60,
        }
        for r in rows
    ]
    results = executor.run_many(jobs)
    return {row["task_id"]: r for row, r in zip(rows, results, strict=True) if r.verdict != "passed"}


def test_canonical_solutions_of_mbpp_pass(sandbox: SafeCodeExecutor, shared: Path) -> None:
    assert not mbpp_failures(sandbox, shared, 6)


@pytest.mark.slow
def test_every_canonical_solution_of_mbpp_passes(sandbox: SafeCodeExecutor, shared: Path) -> None:
    assert not mbpp_failures(sandbox, shared, 1)
