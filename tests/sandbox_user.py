"""Run the hostile programs, several at once, in a process of one's own; the answers as one line of JSON.

    python sandbox_user.py < {"level": null, "seconds": 1.0, "threads": 4, "programs": {...}, "tests": [...], "deny": false}

A helper of the tests, started as another user or beside others of its kind. `deny` forbids this process new namespaces,
as Docker's default filter and Ubuntu's AppArmor do. Standard library and the sandbox only, so that an interpreter
without packages can run it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def deny_namespaces() -> None:
    """A filter under which `unshare` fails with EPERM."""
    sys.path.insert(0, str(Path(sys.modules["aligntune.grading.sandbox"].__file__ or "").parent))
    import lockdown  # type: ignore[import-not-found]

    sys.path.pop(0)
    refused = tuple(name for name in lockdown.DENIED if name != "unshare")
    lockdown.CLONE, lockdown.CLONE3, lockdown.PRLIMIT = (9999, 9999), (9999, 9999), (9999, 9999)  # no call has it
    lockdown.seccomp(allow=refused)


def main() -> None:
    """Read the job, run it, answer."""
    from aligntune.grading.sandbox import SafeCodeExecutor, SandboxUnavailable

    job: dict[str, Any] = json.load(sys.stdin)
    if job["deny"]:
        deny_namespaces()
    level = job["level"]
    with SafeCodeExecutor(
        level=level, require=level or job.get("require", "strong"), timeout=job["seconds"], memory_mb=256
    ) as box:
        try:
            acts = box.describe()
        except SandboxUnavailable as missing:
            print(json.dumps({"unavailable": str(missing)}))
            return

        def one(item: tuple[str, str]) -> tuple[str, list[Any]]:
            started = time.monotonic()
            result = box.run_tests(item[1], job["tests"], timeout=30 if item[0].startswith("right") else None)
            return item[0], [result.verdict, result.passed, time.monotonic() - started]

        with ThreadPoolExecutor(job["threads"]) as pool:
            found = dict(pool.map(one, job["programs"].items()))
        solved = []
        for problem in job.get("problems", []):
            text = problem["prompt"] + problem["canonical_solution"]
            checks = {"entry_point": problem["entry_point"], "check": True, "timeout": 30}
            solved.append(box.run_tests(text, [problem["test"]], **checks).verdict)
    print(json.dumps({"user": os.getuid(), "acts": acts, "results": found, "solved": solved}))


if __name__ == "__main__":
    main()
