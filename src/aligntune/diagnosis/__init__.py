"""Why two runs differ, whether a run can be repeated, what went wrong in one, and what this machine lacks.

>>> from aligntune.diagnosis import diff_runs, reproduce
>>> diff_runs("runs/a", "runs/b").causes[0].what
'train.seed'
>>> reproduce("runs/a").verdict
'identical'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.diagnosis.diff import RunDiff, diff_runs
    from aligntune.diagnosis.environment import Check, check_environment
    from aligntune.diagnosis.post_mortem import PostMortem, diagnose_run
    from aligntune.diagnosis.reproduction import Reproduction, reproduce

_LAZY = {
    "Check": "aligntune.diagnosis.environment:Check",
    "PostMortem": "aligntune.diagnosis.post_mortem:PostMortem",
    "Reproduction": "aligntune.diagnosis.reproduction:Reproduction",
    "RunDiff": "aligntune.diagnosis.diff:RunDiff",
    "check_environment": "aligntune.diagnosis.environment:check_environment",
    "diagnose_run": "aligntune.diagnosis.post_mortem:diagnose_run",
    "diff_runs": "aligntune.diagnosis.diff:diff_runs",
    "reproduce": "aligntune.diagnosis.reproduction:reproduce",
}

__all__ = [
    "Check",
    "PostMortem",
    "Reproduction",
    "RunDiff",
    "check_environment",
    "diagnose_run",
    "diff_runs",
    "reproduce",
]

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
