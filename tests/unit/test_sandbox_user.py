"""The sandbox as an ordinary user, where namespaces are refused, and under load of several hostile programs at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aligntune
import hostile
from aligntune.grading.sandbox import SafeCodeExecutor, SandboxUnavailable

USER = 54_321
"""A user that no system has."""
RIGHT = "def f(x):\n    return 3 * x + 1"
TESTS = [f"assert f({x}) == {3 * x + 1}" for x in (1, 7, -2, 1000)]
HELPER = Path(__file__).parent.parent / "sandbox_user.py"
LIMIT = 1.0


@pytest.fixture(scope="module")
def ordinary(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What starts a process as an ordinary user: the interpreter, and arguments of `subprocess`."""
    if os.name != "posix" or not sys.platform.startswith("linux"):
        pytest.skip("user ids and namespaces of Linux")
    with tempfile.TemporaryDirectory() as name:  # a copy of the package, because the user may not read the checkout
        folder = Path(name)
        folder.chmod(0o755)
        source = Path(aligntune.__file__).parent
        for part in ("__init__.py", "errors.py", "registry.py", "grading"):
            if (source / part).exists():
                made = folder / "aligntune" / part
                made.parent.mkdir(exist_ok=True)
                shutil.copytree(source / part, made) if (source / part).is_dir() else shutil.copy(source / part, made)
        shutil.copy(HELPER, folder / "helper.py")
        someone: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if os.getuid() == 0 else {}
        environment = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "SANDBOX_SECRET": "a token"}
        for python in dict.fromkeys([sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"]):
            try:
                check = "import sys; assert sys.version_info >= (3, 11)"
                subprocess.run([python, "-c", check], check=True, capture_output=True, cwd="/", **someone)
            except (OSError, subprocess.CalledProcessError):
                continue
            yield {"args": [python, str(folder / "helper.py")], "env": environment, "cwd": "/", **someone}
            return
        pytest.skip(f"user {USER} can run no Python 3.11 or newer on this machine")


def start(ordinary: dict[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        **ordinary, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def answer(process: subprocess.Popen[str], job: dict[str, Any]) -> dict[str, Any]:
    out, problems = process.communicate(json.dumps(job), timeout=300)
    assert process.returncode == 0, problems[-2000:]
    found: dict[str, Any] = json.loads(out)
    return found


def job(programs: dict[str, str], *, level: str | None = None, threads: int = 4, deny: bool = False) -> dict[str, Any]:
    return {"level": level, "seconds": LIMIT, "threads": threads, "programs": programs, "tests": TESTS, "deny": deny}


def left_behind() -> list[str]:
    return [name for folder in ("/tmp", "/dev/shm") for name in os.listdir(folder) if name.startswith("hostile")]


def processes_of(user: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and folder.stat().st_uid == user:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("level", ["full", "strong"])
def test_hostile_programs_four_at_once_as_an_ordinary_user(ordinary: dict[str, Any], shared: Path, level: str) -> None:
    lines = (shared / "data/human_eval/HumanEval.jsonl").read_text(encoding="utf-8").splitlines()
    problems = [json.loads(line) for line in lines if line.strip()][:: 8 if level == "full" else 24]
    programs = {f"{n} {name}": source for n, (name, source) in enumerate(hostile.HOSTILE.items())}
    programs |= {f"right {n}": RIGHT for n in range(8)}
    shuffled = dict(sorted(programs.items(), key=lambda item: hash_of(item[0])))
    found = answer(start(ordinary), {**job(shuffled, level=level), "problems": problems})
    if "unavailable" in found:
        pytest.skip(found["unavailable"])
    assert found["user"] == (USER if os.getuid() == 0 else os.getuid())
    assert found["user"] != 0
    for name, (verdict, passed, seconds) in found["results"].items():
        assert (verdict == "passed") == name.startswith("right"), (name, verdict)
        assert passed <= 1 or verdict == "passed", name
        assert seconds < LIMIT + 20, name
    assert set(found["solved"]) == {"passed"}
    assert not left_behind()
    if os.getuid() == 0:
        deadline = time.monotonic() + 10
        while processes_of(USER) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not processes_of(USER)


def hash_of(name: str) -> int:
    """An order that is the same in every run and mixes the kinds of attack."""
    return int.from_bytes(name.encode(), "big") * 2_654_435_761 % 1_000_003


def test_where_namespaces_are_refused_the_level_is_strong(ordinary: dict[str, Any]) -> None:
    found = answer(start(ordinary), job({"right": RIGHT, "lie": hostile.LIE}, deny=True))
    if "unavailable" in found:
        pytest.skip(found["unavailable"])
    assert found["acts"]["level"] == "strong"
    assert {name: row[0] for name, row in found["results"].items()} == {"right": "passed", "lie": "failed"}
    refused = answer(start(ordinary), job({"right": RIGHT}, level="full", deny=True))
    assert "full: not start" in refused["unavailable"]


def test_several_processes_with_hostile_programs_at_once_leave_each_other_and_the_parent_alone(
    ordinary: dict[str, Any],
) -> None:
    """Three processes of four threads, each with the heaviest programs; the parent judges right ones beside them."""
    heavy = [
        "fork bomb",
        "thread bomb",
        "eight gigabytes",
        "slow growth",
        "huge output",
        "huge reply",
        "use up descriptors",
    ]
    heavy += ["threads that stay", "swallow everything", "spin in c"]
    programs = {name: hostile.RESOURCES[name] for name in heavy}
    programs |= {"kill all": hostile.ESCAPE["kill all"], "kill the parent": hostile.ESCAPE["kill the parent"]}
    programs |= {f"right {n}": RIGHT for n in range(4)}
    started = [start(ordinary) for _ in range(3)]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(json.dumps(job(programs)))
        process.stdin.close()
        process.stdin = None
    beside = []
    with SafeCodeExecutor() as box:
        try:
            while any(process.poll() is None for process in started) and len(beside) < 2000:
                beside.append(box.run_tests(RIGHT, TESTS, timeout=30).verdict)
        except SandboxUnavailable as missing:
            pytest.skip(str(missing))
    for process in started:
        out, problems = process.communicate(timeout=300)
        assert process.returncode == 0, problems[-2000:]
        found = json.loads(out)
        if "unavailable" in found:
            pytest.skip(found["unavailable"])
        for name, (verdict, _, _) in found["results"].items():
            assert (verdict == "passed") == name.startswith("right"), (name, verdict)
    assert set(beside) == {"passed"}
    assert not left_behind()
