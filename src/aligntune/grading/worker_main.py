"""The worker process of `worker`: reads one JSON request a line, answers with one JSON line. Never imported.

    python -I worker_main.py math /path/to/site-packages
    {"gold": "1/2", "answer": "0.5", "deadline": 5}      ->      {"equal": true}

It imports nothing of AlignTune, so that no model, token or data set is in the memory of the process that
parses a model's text. It limits its own memory and file writing, locks itself as the code sandbox's programs are
locked where the system can (`sandbox.lockdown`; the task `sql` needs files and is not), and ends itself when a request
outlives its deadline and nobody is left to end it, or when its input closes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any

MEMORY = 4 << 30
"""Bytes of address space: Math-Verify with sympy maps about 0.3 GB."""
GRACE = 2.0
"""Seconds over the deadline after which the process ends itself; the caller ends it at the deadline."""


def limit() -> None:
    """Cap memory, forbid core dumps and file writing."""
    import resource

    for kind, amount in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        try:
            resource.setrlimit(kind, (amount, amount))
        except (ValueError, OSError):  # macOS has no limit on address space
            continue


def confine(folders: list[str]) -> bool:
    """Read packages and nothing else from here on: no file written, no socket, no process, no signal, no capability.

    Returns:
        Whether the system could (Linux with landlock and seccomp); without, the limits of `limit` remain.
    """
    if sys.platform != "linux":
        return False
    lockdown = _beside("sandbox/lockdown.py")
    readable = [*folders, *sysconfig.get_paths().values(), "/usr/lib", "/lib", "/lib64", "/dev/null", "/dev/urandom"]
    try:
        lockdown.drop_capabilities()
        lockdown.landlock([path for path in readable if os.path.exists(path)])
        lockdown.seccomp()
    except OSError:
        return False
    return True


def _beside(name: str) -> Any:
    """The module in a file of this folder, which is no package here."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, Path(__file__).parent / name)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def grade_math() -> Any:
    """The request handler of the task `math`."""
    from math_verify import parse, verify

    @lru_cache(maxsize=4096)
    def gold_of(text: str) -> Any:
        return parse("\\boxed{" + text + "}", parsing_timeout=None)

    gold_of("1")  # builds the parser's tables

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        gold = gold_of(request["gold"])
        if not gold:
            return {"equal": None}
        try:
            answer = parse("\\boxed{" + request["answer"] + "}", parsing_timeout=None)
            return {"equal": bool(answer) and bool(verify(gold, answer, timeout_seconds=None))}
        except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as e:
            return {"equal": False, "error": type(e).__name__}

    return handle


def search() -> Any:
    """The request handler of the task `regex`."""
    compile_pattern = lru_cache(maxsize=64)(re.compile)

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        try:
            pattern = compile_pattern(request["pattern"])
        except (re.error, RecursionError, OverflowError) as e:
            return {"error": str(e)}
        return {"found": getattr(pattern, request["mode"])(request["text"]) is not None}

    return handle


def validate() -> Any:
    """The request handler of the task `schema`: one validator for each schema, which resolves nothing from outside."""
    from jsonschema import ValidationError, validators
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    @lru_cache(maxsize=512)
    def validator_of(text: str) -> Any:
        schema = json.loads(text)
        cls = validators.validator_for(schema, default=validators.Draft202012Validator)
        cls.check_schema(schema)
        return cls(schema, registry=Registry())

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        try:
            validator = validator_of(request["schema"])
            validator.validate(json.loads(request["value"]))
        except ValidationError as e:
            return {"valid": False, "error": e.message[:200]}
        except SchemaError as e:
            return {"refused": e.message[:200]}
        except (Unresolvable, re.error) as e:
            return {"refused": str(e)[:200]}
        except (RecursionError, MemoryError, ArithmeticError) as e:
            return {"valid": False, "error": type(e).__name__}
        return {"valid": True}

    return handle


def sql() -> Any:
    """The request handler of the task `sql`, from the file beside this one."""
    return _beside("worker_sql.py").handle


def main() -> None:
    """Answer requests until the input closes."""
    task, *folders = sys.argv[1:]
    sys.path.extend(folders)
    sys.dont_write_bytecode = True
    sys.setrecursionlimit(3000)
    try:
        handle = {"math": grade_math, "regex": search, "schema": validate, "sql": sql}[task]()
    except ImportError as e:
        print(json.dumps({"ready": False, "error": str(e)}), flush=True)
        return
    limit()
    if task != "sql":  # which opens the databases that requests name, behind SQLite's own authorizer
        confine(folders)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["deadline"] + GRACE)
        answer = handle(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
