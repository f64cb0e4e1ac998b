"""A run folder's manifest and line files, as the diagnosis reads them: whatever is there, damaged lines left out.

>>> run = read_stored("runs/a")
>>> run.status, run.manifest["algorithm"], len(run.metrics)
('finished', 'dpo', 12)
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.utils.run_folder import CONFIG, EVENTS, MANIFEST, METRICS, ORDER, read_manifest


@dataclass(frozen=True)
class Stored:
    """What a run folder holds.

    Attributes:
        path: the folder.
        manifest: `manifest.json`; empty where there is none.
        config: `config.resolved.yaml` as plain values; empty where there is none.
        metrics: rows of `metrics.jsonl`; `order` and `events` likewise.
        damaged: file name to the number of lines that are no JSON objects; 1 for another file that cannot be read.
    """

    path: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    order: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    damaged: dict[str, int] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """running, finished, failed, interrupted, or unknown."""
        return str(self.manifest.get("status", "unknown"))


def read_stored(path: str | os.PathLike[str], *, strict: bool = True) -> Stored:
    """Read a run folder.

    Args:
        path: the folder.
        strict: a damaged manifest is an error; else it counts among what is damaged.

    Raises:
        ValidationError: there is no such folder, or it is not a run's.
        ConfigurationError: its manifest is damaged.
    """
    import yaml

    folder = Path(os.path.abspath(os.path.expanduser(path)))
    damaged: dict[str, int] = {}
    try:
        manifest = read_manifest(folder)
    except ConfigurationError:
        if strict:
            raise
        manifest, damaged[MANIFEST] = {}, 1
    if manifest is None and not (folder / METRICS).is_file():
        raise ValidationError(
            f"{path} is not a run folder (no manifest.json, no {METRICS})", hint="give the output_dir of a run"
        )
    lines = {name: _lines(folder / name, damaged) for name in (METRICS, ORDER, EVENTS)}
    config: Any = {}
    if (folder / CONFIG).is_file():
        try:
            config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            damaged[CONFIG] = 1
    return Stored(
        path=folder,
        manifest=manifest or {},
        config=config if isinstance(config, dict) else {},
        metrics=lines[METRICS],
        order=lines[ORDER],
        events=lines[EVENTS],
        damaged=damaged,
    )


def _lines(path: Path, damaged: dict[str, int]) -> list[dict[str, Any]]:
    """The rows of a file of lines; those that are none are counted, but for a torn last one."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif i < len(lines) - 1:
            damaged[path.name] = damaged.get(path.name, 0) + 1
    return rows
