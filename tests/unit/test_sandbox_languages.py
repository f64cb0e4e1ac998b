"""Programs in other languages: right ones pass, wrong ones fail, hostile ones are contained, at each level there is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_sandbox import processes

import hostile_languages
from aligntune.errors import ConfigurationError, EnvironmentError
from aligntune.grading import code
from aligntune.grading.code import blocks, judge, program
from aligntune.grading.sandbox import SafeCodeExecutor, SandboxUnavailable, languages
from aligntune.rewards import get_reward_function

LIMIT = 0.7
CASES = [("21\n", "42\n")]
INSTALLED = [name for name, known in languages.KNOWN.items() if any(map(languages.shutil.which, known.commands))]


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


def ready(executor: SafeCodeExecutor, language: str) -> None:
    """Skip where the language's interpreter is not on this machine."""
    try:
        languages.find(language)
    except EnvironmentError as missing:
        pytest.skip(str(missing))
    assert (
        executor.run_script(hostile_languages.RIGHT[language], CASES, language=language, timeout=30).verdict == "passed"
    )


@pytest.mark.parametrize("language", list(languages.KNOWN))
def test_right_and_wrong_programs(sandbox: SafeCodeExecutor, language: str) -> None:
    ready(sandbox, language)
    more = [("0", "0"), ("-4", "-8"), ("21", "42")]
    good = sandbox.run_script(hostile_languages.RIGHT[language], more, language=language, timeout=30)
    assert (good.verdict, good.passed, good.total) == ("passed", 3, 3)
    bad = sandbox.run_script(hostile_languages.WRONG[language], CASES, language=language, timeout=30)
    assert (bad.verdict, bad.passed) == ("failed", 0)
    broken = sandbox.run_script(")(", CASES, language=language, timeout=30)
    assert broken.verdict == "error"
    assert sandbox.run_script("\0", CASES, language=language).verdict == "error"
    assert sandbox.run_script("#" * 130_000, CASES, language=language).verdict == "refused"


@pytest.mark.parametrize("language", list(hostile_languages.HOSTILE))
def test_hostile_programs_are_contained(sandbox: SafeCodeExecutor, language: str) -> None:
    ready(sandbox, language)
    before = set(os.listdir("/tmp")) | set(os.listdir("/dev/shm"))
    victim = Path("/tmp/hostile_victim")
    victim.write_text("x")
    passed, late = [], []
    try:
        for name, source in hostile_languages.HOSTILE[language].items():
            started = time.monotonic()
            result = sandbox.run_script(source, CASES, language=language)
            if result.verdict == "passed":
                passed.append(name)
            if time.monotonic() - started > LIMIT + 8:
                late.append(name)
        assert victim.exists()
    finally:
        victim.unlink(missing_ok=True)
    assert not passed
    assert not late
    assert not [m for m in (set(os.listdir("/tmp")) | set(os.listdir("/dev/shm"))) - before if "hostile" in m]
    deadline = time.monotonic() + 5
    while processes(sandbox) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not processes(sandbox)
    ready(sandbox, language)


def test_an_interpreter_is_found_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="no language 'cobol'") as caught:
        languages.find("cobol")
    assert "perl" in caught.value.hint
    with pytest.raises(ConfigurationError, match="no absolute path"):
        languages.find("perl", "perl")
    with pytest.raises(EnvironmentError, match="there is no interpreter for perl: /nowhere/perl is not installed"):
        languages.find("perl", "/nowhere/perl")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentError, match="luajit is not installed"):
        languages.find("lua")
    shim = tmp_path / "ruby"
    shim.write_text("#!/bin/sh\nexec ruby\n")
    shim.chmod(0o755)
    with pytest.raises(EnvironmentError, match="is a script, not the interpreter"):
        languages.find("ruby")


def test_an_interpreter_that_does_not_run_as_it_should_is_refused(sandbox: SafeCodeExecutor) -> None:
    with pytest.raises(SandboxUnavailable, match=f"true does not run at level {sandbox.level}"):
        sandbox.run_script("x", CASES, language="perl", interpreter="/bin/true")


def test_blocks_and_judge_by_language() -> None:
    text = "```python\nprint(1)\n```\nor\n```js\nconsole.log(1)\n```"
    assert blocks(text, "javascript") == ["console.log(1)\n"]
    assert program(text, language="javascript") == "console.log(1)\n"
    assert program(text) == "print(1)\n"
    with pytest.raises(ConfigurationError, match="asserts cannot call functions of perl"):
        judge("x", code.Tests(listed=("assert f(1)",)), language="perl")
    with pytest.raises(ConfigurationError, match="own interpreter"):
        judge("x", code.Tests(cases=(("1", "2"),)), interpreter="/usr/bin/python3")


@pytest.mark.skipif(not INSTALLED, reason="no interpreter of another language is installed")
def test_the_reward_takes_a_language() -> None:
    language = INSTALLED[0]
    mark = languages.marks(language)[0]
    reward = get_reward_function("stdio_tests", language=language, timeout=30)
    text = f"It doubles.\n```{mark}\n{hostile_languages.RIGHT[language]}\n```"
    assert reward.compute(text, cases=[["21", "42"], ["1", "3"]]) == 0.5
    path = languages.find(language).command[0]
    named = get_reward_function("stdio_tests", language=language, interpreter=path, timeout=30)
    assert named.compute(text, cases=CASES) == 1.0
    with pytest.raises(EnvironmentError, match="is not installed"):
        get_reward_function("stdio_tests", language=language, interpreter="/nowhere/x").compute(text, cases=CASES)
