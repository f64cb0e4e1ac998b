"""Finding the program in a text, and judging it by a row's tests in the sandbox.

    program("Here it is:\\n```python\\ndef f(): ...\\n```")       # "def f(): ...\\n"
    judge(text, Tests(listed=["assert f(1) == 2"]))             # a CodeResult

The forms of tests are those of the published sets: a list of asserts (MBPP), a `check(candidate)` (HumanEval), and
pairs of input and output. Other languages than Python are judged by
pairs. One sandbox for each isolation stands ready in the process. It does not decide how much a
result is worth; the rewards do.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.grading.sandbox.languages import marks

if TYPE_CHECKING:
    from aligntune.grading.sandbox import CodeResult, SafeCodeExecutor
    from aligntune.grading.sandbox.executor import Level
    from aligntune.grading.sandbox.languages import Language

_sandboxes: dict[str, SafeCodeExecutor] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Tests:
    """What a row says of a right program.

    Attributes:
        listed: asserts, each one test.
        check: source that defines `check(candidate)`.
        entry_point: the function under test.
        setup: source that runs before the tests.
        cases: (standard input, standard output) pairs.
    """

    listed: tuple[str, ...] = ()
    check: str | None = None
    entry_point: str | None = None
    setup: str = ""
    cases: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.listed or self.check or self.cases)


def _after_thought(text: str) -> str:
    return text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text


def blocks(text: str, language: str = "python") -> list[str]:
    """The fenced blocks of a text after its thought: those marked as the language, or else the unmarked ones.

    A fence that is never closed is no block. One pass over the lines.
    """
    found: list[tuple[str, str]] = []
    kind = ""
    lines: list[str] | None = None
    for line in _after_thought(text).split("\n"):
        mark = line.strip()
        if lines is None and mark.startswith("```") and "`" not in mark[3:]:
            kind, lines = (mark[3:].split() or [""])[0].lower(), []
        elif lines is not None and mark == "```":
            found.append((kind, "".join(f"{each}\n" for each in lines)))
            lines = None
        elif lines is not None:
            lines.append(line)
    known = marks(language)
    marked = [code for kind, code in found if kind in known]
    return marked or [code for kind, code in found if not kind]


def program(text: str, prompt: Any = None, entry_point: str | None = None, language: str = "python") -> str:
    """The program of a text: its last fenced block, or all that follows its thought.

    Where that does not define `entry_point` and the prompt is the beginning of a program that does (HumanEval), the
    text goes on with it.
    """
    found = blocks(text, language)
    source = found[-1] if found else _after_thought(text)
    if entry_point is not None and isinstance(prompt, str) and not _defines(source, entry_point):
        return prompt + source if _defines(prompt, entry_point) else source
    return source


def _defines(source: str, name: str) -> bool:
    return (
        re.search(rf"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+{re.escape(name)}\b", source, re.MULTILINE) is not None
    )


def read_tests(
    test_list: Any = None, test: Any = None, entry_point: Any = None, test_setup_code: Any = None, cases: Any = None
) -> Tests:
    """Tests from a row's columns.

    Raises:
        ValidationError: a column has another form.
    """
    for name, value, kinds in (
        ("test_list", test_list, (list, tuple)),
        ("test", test, (str,)),
        ("entry_point", entry_point, (str,)),
        ("test_setup_code", test_setup_code, (str,)),
        ("cases", cases, (list, tuple)),
    ):
        if value is not None and not isinstance(value, kinds):
            raise ValidationError(
                f"the column {name} is {type(value).__name__}, not {kinds[0].__name__}",
                hint=f"map another column with column_mapping: {{{name}: ...}}, or mend the data",
            )
    return Tests(
        listed=tuple(_text("test_list", t) for t in test_list or ()),
        check=test or None,
        entry_point=entry_point or None,
        setup=test_setup_code or "",
        cases=tuple(_case(c) for c in cases or ()),
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValidationError(
            f"the column {name} holds {type(value).__name__}, not text", hint="write each test as a line of Python"
        )
    return value


def _case(value: Any) -> tuple[str, str]:
    if isinstance(value, dict) and "input" in value and "output" in value:
        value = (value["input"], value["output"])
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValidationError(
            "a case of the column cases is no pair of input and output",
            hint='write {"input": "1 2", "output": "3"} or ["1 2", "3"]',
        )
    return _text("cases", value[0]), _text("cases", value[1])


def sandbox(require: Level = "strong") -> SafeCodeExecutor:
    """The process's sandbox of this isolation, made on first use."""
    from aligntune.grading.sandbox import SafeCodeExecutor

    with _lock:
        if require not in _sandboxes:
            _sandboxes[require] = SafeCodeExecutor(require=require)
        return _sandboxes[require]


def judge(
    source: str,
    tests: Tests,
    *,
    timeout: float = 5.0,
    require: Level = "strong",
    language: Language = "python",
    interpreter: str | None = None,
) -> CodeResult:
    """Run a program against a row's tests.

    Args:
        source: the program, see `program`.
        tests: at least one.
        timeout: seconds for all asserts, or for each case.
        require: the least isolation that is accepted.
        language: what it is written in; others than Python are judged by cases alone.
        interpreter: the absolute path of the language's interpreter, in place of the first on PATH.

    Raises:
        EnvironmentError: the system isolates less than required, or the interpreter is not installed.
        ValidationError: there are no tests.
        ConfigurationError: asserts for another language than Python, or an interpreter for Python.
    """
    box = sandbox(require)
    if language == "python" and interpreter is not None:
        raise ConfigurationError("Python programs run in AlignTune's own interpreter", hint="leave interpreter out")
    if tests.cases:
        return box.run_script(source, tests.cases, timeout=timeout, language=language, interpreter=interpreter)
    if language != "python":
        raise ConfigurationError(f"asserts cannot call functions of {language}", hint="give cases of input and output")
    if tests.check:
        return box.run_tests(
            source, [tests.check], entry_point=tests.entry_point, setup=tests.setup, check=True, timeout=timeout
        )
    if not tests.listed:
        raise ValidationError("there are no tests", hint="the row needs test_list, test or cases")
    return box.run_tests(source, tests.listed, entry_point=tests.entry_point, setup=tests.setup, timeout=timeout)
