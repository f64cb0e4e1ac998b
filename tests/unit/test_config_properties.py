"""Any text, any values and any arguments: the loader and the command line answer with one of our errors, or a result.

Up to 300 cases each in the default suite, 10,000 in the slow one.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aligntune.core.config import RLConfig, SFTConfig, load_config
from aligntune.core.config.base import is_section, walk
from aligntune.core.config.io import dump_config
from aligntune.errors import AlignTuneError

FEW, MANY = 300, 10_000
QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
BASE: dict[str, dict[str, Any]] = {
    "sft": {"task": "instruction_following", "model": {"name_or_path": "m"}, "dataset": "rows.jsonl"},
    "rl": {"algo": "grpo", "model": {"name_or_path": "m"}, "datasets": ["rows.jsonl"], "rewards": ["length"]},
    "dpo": {"algo": {"name": "dpo"}, "model": {"name_or_path": "m"}, "datasets": [{"name": "rows.jsonl"}]},
}
KEYS = sorted(
    {path for base in BASE.values() for path, _ in walk(load_config(base))}
    | {"model.peft.r", "judge.model", "evaluation.dataset.name", "health.window", "base", "algo", "task", "nonsense"}
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.sampled_from(["auto", "", "1e-5", "trl", "unsloth", "gsm8k", "none", "sum", "::", "a.py:f", "\x00", "ü", "-1"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6) | SCALARS, inner, max_size=3)
    ),
    max_leaves=6,
)
ASSIGNMENTS = st.lists(st.tuples(st.sampled_from(KEYS) | st.text(max_size=12), VALUES), max_size=4)


def settle(raw: Any) -> None:
    """Load, and hold what every outcome must hold."""
    try:
        config = load_config(raw)
    except AlignTuneError:
        return
    assert is_section(config)
    assert isinstance(config, (RLConfig, SFTConfig))
    assert load_config(yaml.safe_load(dump_config(config))) == config


def place(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    at: Any = raw
    for step in parents:
        if isinstance(at, list) and at:
            at = at[0]
            continue
        if not isinstance(at, dict):
            return
        if not isinstance(at.get(step), (dict, list)):
            at[step] = {}
        at = at[step] or at
    if isinstance(at, dict):
        at[last] = value


def changed(kind: str, assignments: list[tuple[str, Any]]) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(yaml.safe_dump(BASE[kind]))
    for key, value in assignments:
        place(raw, key, value)
    return raw


def any_values(kind: str, assignments: list[tuple[str, Any]]) -> None:
    settle(changed(kind, assignments))


def any_text(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    settle(path)


TEXTS = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.builds(
        lambda kind, pairs: yaml.safe_dump(changed(kind, pairs), allow_unicode=True).encode(),
        st.sampled_from(sorted(BASE)),
        st.lists(st.tuples(st.sampled_from(KEYS), st.integers() | st.booleans() | st.text("abc:{}[]&*!|>#%@`", max_size=6)), max_size=3),
    ),
    st.sampled_from([b"a: &a [*a]", b"a: !!python/object:os.system x", b"? [1]\n: 2", b"base: run.yaml", b"- 1", b"1", b""]),
)  # fmt: skip
COMMANDS = (
    "config", "recipes", "diff", "diagnose", "reproduce", "train", "check", "report", "rewards", "data", "eval", "compare",
    "run", "nonsense",
)  # fmt: skip
LIMIT = 60
"""Seconds after which a command line counts as hanging."""
WORDS = st.one_of(
    st.sampled_from(
        ["--json", "--help", "-v", "--debug", "show", "list", "run", "schema", "--dry-run", "nowhere", "run.yaml", "a=b",
         "train.max_steps=x", "--tolerance", "--seed", "--", "-", "", "--resume", "--output-dir", "=", "algo=grpo"]
    ),
    st.text(max_size=6).filter(lambda t: "\x00" not in t),
)  # fmt: skip


ASSIGNED = st.lists(
    st.builds(
        "{}={}".format,
        st.sampled_from(KEYS),
        st.one_of(
            VALUES.map(lambda v: yaml.safe_dump(v, default_flow_style=True, width=10**6).removesuffix("...\n").strip()),
            st.text(max_size=8),
        ),
    ).filter(lambda t: "\x00" not in t),
    max_size=3,
)
"""Overrides as they stand on a command line."""


def any_overrides(kind: str, assigned: list[str], run: Callable[[list[str]], int]) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(BASE[kind]))
    code = run(["train", "run.yaml", "--dry-run", *assigned])
    assert code in (0, 2, 3), (kind, assigned, code)


def any_arguments(command: str, words: list[str], run: Callable[[list[str]], int]) -> None:
    code = run([command, *words])
    assert code in (0, 1, 2, 3), (command, words, code)


@pytest.fixture
def answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[list[str]], int]]:
    """Run the command line in an empty folder, and refuse what it did not expect."""
    from aligntune.cli import main as program

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def late(*given: Any) -> None:
        raise BaseException(f"still running after {LIMIT} s")  # nothing in the program may catch it

    before = signal.signal(signal.SIGALRM, late)

    def run(arguments: list[str]) -> int:
        signal.alarm(LIMIT)
        try:
            code = program.main(arguments)
        finally:
            signal.alarm(0)
        out = capsys.readouterr()
        assert not re.search(r"unexpected \w+(Error|Exception|Interrupt)", out.err), (arguments, out.err)
        if "--debug" not in arguments:
            assert "Traceback" not in out.err
        return code

    yield run
    signal.signal(signal.SIGALRM, before)


@settings(max_examples=FEW, deadline=None, suppress_health_check=QUIET)
@given(st.sampled_from(sorted(BASE)), ASSIGNMENTS)
def test_any_values(kind: str, assignments: list[tuple[str, Any]]) -> None:
    any_values(kind, assignments)


@settings(max_examples=FEW, deadline=None, suppress_health_check=QUIET)
@given(TEXTS)
def test_any_text(tmp_path: Path, text: bytes) -> None:
    any_text(tmp_path / "run.yaml", text)


@settings(max_examples=FEW, deadline=None, suppress_health_check=QUIET)
@given(st.sampled_from(COMMANDS), st.lists(WORDS, min_size=1, max_size=4))
def test_any_arguments(answered: Callable[[list[str]], int], command: str, words: list[str]) -> None:
    any_arguments(command, words, answered)


@settings(max_examples=FEW // 3, deadline=None, suppress_health_check=QUIET)
@given(st.sampled_from(sorted(BASE)), ASSIGNED)
def test_any_overrides(answered: Callable[[list[str]], int], kind: str, assigned: list[str]) -> None:
    any_overrides(kind, assigned, answered)


@pytest.mark.slow
@settings(max_examples=MANY, deadline=None, suppress_health_check=QUIET)
@given(st.sampled_from(sorted(BASE)), ASSIGNED)
def test_any_overrides_many(answered: Callable[[list[str]], int], kind: str, assigned: list[str]) -> None:
    any_overrides(kind, assigned, answered)


@pytest.mark.slow
@settings(max_examples=MANY, deadline=None, suppress_health_check=QUIET)
@given(st.sampled_from(sorted(BASE)), ASSIGNMENTS)
def test_any_values_many(kind: str, assignments: list[tuple[str, Any]]) -> None:
    any_values(kind, assignments)


@pytest.mark.slow
@settings(max_examples=MANY, deadline=None, suppress_health_check=QUIET)
@given(TEXTS)
def test_any_text_many(tmp_path: Path, text: bytes) -> None:
    any_text(tmp_path / "run.yaml", text)


@pytest.mark.slow
@settings(max_examples=MANY, deadline=None, suppress_health_check=QUIET)
@given(st.sampled_from(COMMANDS), st.lists(WORDS, min_size=1, max_size=4))
def test_any_arguments_many(answered: Callable[[list[str]], int], command: str, words: list[str]) -> None:
    any_arguments(command, words, answered)
