"""What identifies a stage, and the record that it leaves: `stage.json` in its folder.

A stage is known by three things, and a finished one is kept while all three are what they were:

- `config`: its configuration, with values written in and references to stages as they are written;
- `files`: SHA-256 of the local files and folders that the configuration names;
- `inputs`: what the stages that it reads have made, as SHA-256 over the files of their results.

>>> identity(planned, {"sft": "3f2a..."})["files"]
{'data/test.jsonl': '9c1d...'}

A file above `WHOLE` bytes that is named as an input is known by its size and time of change, which a copy changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError
from aligntune.stages.kinds import RECORD
from aligntune.stages.plan import Planned, code_file, places
from aligntune.utils.files import jsonable
from aligntune.utils.manifest import file_sha256

WHOLE = 1 << 30
"""Input files up to this size (1 GiB, about a second to read) are known by their content."""
SKIPPED = ("checkpoint-*", "rollouts", "evaluation", "report.html", "manifest.json", "*.lock", ".git")
"""In a folder that is an input: what a run writes beside its model."""


def identity(stage: Planned, outcomes: Mapping[str, str]) -> dict[str, Any]:
    """`config`, `files` and `inputs` of a stage, as plain values.

    Args:
        stage: of a plan.
        outcomes: what the stages that it needs have made.
    """
    found = {
        "kind": stage.kind_name,
        "config": dict(stage.symbolic),
        "files": _files(stage.symbolic),
        "inputs": {name: outcomes[name] for name in stage.needs if name in outcomes},
    }
    plain: dict[str, Any] = json.loads(json.dumps(jsonable(found), sort_keys=True))
    return plain


def _files(symbolic: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, text in places(symbolic):
        code = code_file(key, text)
        file = text if code is None else code
        if not file or "${" in file or "://" in file:
            continue
        path = Path(file).expanduser()
        is_path = "/" in file or path.is_file() or (path / "config.json").is_file()
        if is_path and path.exists():
            found[file] = content(path)
    return found


def content(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files."""
    if path.is_file():
        return _file(path)
    parts = []
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.is_file() and not any(Path(part).match(skip) for part in inside.parts for skip in SKIPPED):
            parts.append(f"{inside.as_posix()} {_file(file)}")
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _file(path: Path) -> str:
    stat = path.stat()
    return file_sha256(path) if stat.st_size <= WHOLE else f"{stat.st_size} bytes, {stat.st_mtime_ns}"


def outcome(stage: Planned) -> str:
    """SHA-256 over the files that a finished stage has made."""
    files = sorted({path for pattern in stage.kind.outcome for path in stage.folder.glob(pattern)})
    parts = [f"{path.relative_to(stage.folder).as_posix()} {file_sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def changes(before: Mapping[str, Any], now: Mapping[str, Any], *, inputs: bool = True) -> list[str]:
    """What differs between two identities, one phrase each; empty where nothing does."""
    found = [f"{key}: {_short(a)} -> {_short(b)}" for key, a, b in _different(before["config"], now["config"])]
    if before["kind"] != now["kind"]:
        found.append(f"kind: {before['kind']} -> {now['kind']}")
    for file in sorted({*before["files"], *now["files"]}):
        if before["files"].get(file) != now["files"].get(file) and not found:
            found.append(f"the content of {file}")
    if inputs:
        for name in sorted({*before["inputs"], *now["inputs"]}):
            if before["inputs"].get(name) != now["inputs"].get(name):
                found.append(f"what the stage {name} has made")
    return found


_ABSENT = object()


def _different(a: Any, b: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        found = []
        for name in dict.fromkeys([*a, *b]):
            dotted = f"{key}.{name}" if key else str(name)
            found += _different(a.get(name, _ABSENT), b.get(name, _ABSENT), dotted)
        return found
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [row for i, (x, y) in enumerate(zip(a, b, strict=True)) for row in _different(x, y, f"{key}.{i}")]
    return [] if a is b or a == b else [(key, a, b)]


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "(nothing)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_record(folder: Path) -> dict[str, Any] | None:
    """`stage.json` of a folder; None where there is none.

    Raises:
        ConfigurationError: it is damaged.
    """
    path = folder / RECORD
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigurationError(
            f"{path} is damaged ({error}), so nobody can tell whether the stage is finished",
            hint="set output_dir to another folder, or move this stage's folder away to make it again",
        ) from error
    if not isinstance(found, dict) or "identity" not in found:
        raise ConfigurationError(f"{path} is not a stage's record", hint="set output_dir to another folder")
    return found
