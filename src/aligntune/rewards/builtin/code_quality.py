"""Rewards that read a program without running it: `code_quality` and `code_completeness`.

    get_reward_function("code_quality").compute("def f(a):\\n    return a + 1")                         # 1.0
    get_reward_function("code_completeness").compute("def f(a): ...", test_list=["assert f(1) == 2"])  # 0.0

The program is the text's last fenced block, or the whole text. It is parsed in the sandbox first, as `code_syntax`
does, because some texts crash a parser; what does not parse scores 0. It is never executed.

Source: the rules of pycodestyle, pyflakes and flake8-bugbear as ruff has them (extra `code`); cyclomatic complexity
(McCabe 1976). Python only. Neither says that a program is right.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import PositiveFloat, PositiveInt

from aligntune import errors
from aligntune.grading.code import blocks, program, read_tests, sandbox
from aligntune.rewards.base import count, reward
from aligntune.rewards.builtin.code import Require
from aligntune.rewards.builtin.group import completion_text

RULES = ("E", "F", "W", "B")
"""pycodestyle's errors and warnings, pyflakes, bugbear."""
COMPLEXITY = "C901"
WORKERS = 4
_MEASURED = re.compile(r"\((\d+) > 0\)")


class Findings(NamedTuple):
    """What ruff says of a program: findings, and the complexity of each of its functions."""

    findings: int
    complexities: list[int]


def _ruff() -> str:
    import shutil
    import sysconfig

    beside = Path(sysconfig.get_path("scripts")) / "ruff"
    found = str(beside) if beside.is_file() else shutil.which("ruff")
    if found is None:
        raise errors.EnvironmentError(
            "the reward 'code_quality' needs the program ruff, which is not installed",
            hint="run: pip install 'aligntune[code]'",
        )
    return found


def check(sources: Sequence[str], rules: Sequence[str], line_length: int, timeout: float) -> list[Findings | None]:
    """Run ruff once over all programs, without any configuration of the machine's; None where ruff itself fails.

    Suppressions in comments (`noqa`) have no effect, or a program could silence its judge.
    """
    if not sources:
        return []
    with tempfile.TemporaryDirectory(prefix="aligntune-ruff-") as folder:
        for i, source in enumerate(sources):
            (Path(folder) / f"p{i}.py").write_text(source, encoding="utf-8", errors="replace", newline="")
        found = _run(folder, rules, line_length, timeout)
    if found is None:
        if len(sources) == 1:
            return [None]
        half = len(sources) // 2  # one program brought it down: search for it
        return [
            *check(sources[:half], rules, line_length, timeout),
            *check(sources[half:], rules, line_length, timeout),
        ]
    result = [Findings(0, []) for _ in sources]
    for item in found:
        place = int(Path(item["filename"]).stem[1:])
        if item["code"] == COMPLEXITY:
            measured = _MEASURED.search(item["message"])
            result[place].complexities.append(int(measured[1]) if measured else 1)
        else:
            result[place] = result[place]._replace(findings=result[place].findings + 1)
    return list(result)


def _run(folder: str, rules: Sequence[str], line_length: int, timeout: float) -> list[dict[str, Any]] | None:
    command = [
        _ruff(), "check", "--isolated", "--no-cache", "--exit-zero", "--ignore-noqa", "--quiet",
        "--output-format", "json", "--select", ",".join([*rules, COMPLEXITY]), "--line-length", str(line_length),
        "--config", "lint.mccabe.max-complexity = 0", folder,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode == 2 and b"selector" in done.stderr:
        raise errors.ConfigurationError(
            f"ruff does not take the rules {', '.join(rules)}", hint=done.stderr.decode(errors="replace").strip()[:300]
        )
    if done.returncode != 0:
        return None
    found: list[dict[str, Any]] = json.loads(done.stdout or b"[]")
    return found


def _parsing(sources: Sequence[str], require: Require) -> list[bool]:
    """Which programs are not empty and parse, by the sandbox."""
    box = sandbox(require)
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda s: bool(s.strip()) and box.parses(s).verdict == "passed", sources))


def _code_lines(source: str) -> int:
    """Lines that are neither blank nor a comment alone, so that padding dilutes nothing."""
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in source.splitlines())


@reward("code_quality", kind="measured")
def code_quality(
    prompts: Any,
    completions: Any,
    *,
    rules: list[str] = list(RULES),  # noqa: B006
    max_complexity: PositiveInt = 10,
    line_length: PositiveInt = 120,
    timeout: PositiveFloat = 60.0,
    require: Require = "strong",
) -> list[float | None]:
    """max(0, 1 - findings / lines) x share of functions whose complexity is at most `max_complexity`; 0 if it does not
    parse.

    Findings are those of ruff (extra `code`), once for a whole batch; lines are those with code. A short program that
    does nothing scores 1: weigh it beside tests. A program that ruff cannot read within `timeout` scores 0 and is
    counted (`ruff_failed`).

    Args:
        rules: ruff's names; the default is pycodestyle (E, W), pyflakes (F) and bugbear (B).
        max_complexity: McCabe's own limit, 10.
        line_length: characters of a line, for rule E501.
        timeout: seconds for a batch.
        require: the least isolation that is accepted for the parser.

    >>> get_reward_function("code_quality").compute("import os\\ndef f(a):\\n    return a\\n")   # one unused import
    0.6666666666666667
    """
    sources = [program(completion_text(c)) for c in completions]
    sound = [i for i, good in enumerate(_parsing(sources, require)) if good]
    found: list[float | None] = [0.0] * len(sources)
    texts = [sources[i] if sources[i].endswith("\n") else sources[i] + "\n" for i in sound]
    for i, result in zip(sound, check(texts, rules, line_length, timeout), strict=True):
        if result is None:
            count("ruff_failed")
            continue
        clean = max(0.0, 1 - result.findings / max(1, _code_lines(sources[i])))
        simple = sum(c <= max_complexity for c in result.complexities)
        found[i] = clean * (simple / len(result.complexities) if result.complexities else 1.0)
    return found


@reward("code_completeness", kind="verifiable")
def code_completeness(
    text: str,
    test_list: Any = None,
    test: Any = None,
    entry_point: Any = None,
    test_setup_code: Any = None,
    prompt: Any = None,
    *,
    require: Require = "strong",
) -> float | None:
    """Share of the names that the prompt or the tests need, which the program defines with a body; 0 if it does not
    parse.

    Needed are the `entry_point`, what the asserts of `test_list` use and neither Python nor their setup defines, and,
    where there is none of these, the functions and classes whose heads stand in the prompt. A body of nothing but a
    docstring, `pass`, `...` or `raise NotImplementedError` is none. A row that needs no name is None (counted as
    `no_names`).

    Args:
        test_list: asserts (MBPP).
        test: source that defines `check(candidate)` (HumanEval); it needs `entry_point`.
        entry_point: the function under test.
        test_setup_code: trusted source that runs before the tests.
        prompt: where it is the beginning of the program, the text goes on with it.
        require: the least isolation that is accepted for the parser.

    >>> get_reward_function("code_completeness").compute(
    ...     "def f(a):\\n    return a\\ndef g(a): ...", test_list=["assert f(1) == 1", "assert g(1) == 1"]
    ... )
    0.5
    """
    tests = read_tests(test_list, test, entry_point, test_setup_code)
    needed = needed_names(tests.listed, tests.setup, tests.entry_point, prompt)
    if not needed:
        count("no_names")
        return None
    source = program(text, prompt, tests.entry_point)
    if not _parsing([source], require)[0]:
        return 0.0
    return len(needed & defined_names(source)) / len(needed)


def needed_names(listed: Sequence[str], setup: str, entry_point: str | None, prompt: Any) -> set[str]:
    """The names that a right program defines, from trusted tests and the prompt.

    >>> needed_names(["assert f(len([1])) == 1"], "", None, None)
    {'f'}
    """
    if entry_point:
        return {entry_point}
    used: set[str] = set()
    own = set(dir(builtins))
    for source in (*listed, setup):
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            raise errors.ValidationError(f"a test of the row does not parse: {e}", hint="mend test_list") from e
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and source is not setup:
                used.add(node.id)
            elif isinstance(node, ast.Name):
                own.add(node.id)
            elif isinstance(node, ast.alias):
                own.add((node.asname or node.name).partition(".")[0])
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.arg):
                own.add(node.arg)
    if used - own or listed:
        return used - own
    if not isinstance(prompt, str):
        prompt = prompt[-1].get("content") if isinstance(prompt, list) and prompt else ""
    shown = "\n".join(blocks(prompt or "")) or prompt or ""
    return set(re.findall(r"^(?:async[ \t]+)?(?:def|class)[ \t]+([A-Za-z_]\w*)[ \t]*[(:]", shown, re.MULTILINE))


def defined_names(source: str) -> set[str]:
    """Names that a program binds at its top level: functions and classes with a body, assignments, imports.

    Only for a program that the sandbox has parsed: there is nothing left in it that could crash this process's parser.
    """
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if not all(map(_empty, node.body)):
                found.add(node.name)
            else:
                found.discard(node.name)  # a later stub takes the name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if node.value else []
            found |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(a.asname or a.name).partition(".")[0] for a in node.names}
    return found


def _empty(node: ast.stmt) -> bool:
    """True for a statement that does nothing: pass, a constant, raise NotImplementedError."""
    if isinstance(node, ast.Pass):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Raise):
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return False
