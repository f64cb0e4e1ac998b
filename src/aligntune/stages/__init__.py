"""Stages from one file: split data, train, make pairs, train again, evaluate, compare, report (`aligntune run`).

    from aligntune.stages import run_stages
    result = run_stages("assistant.yaml", ["values.data=support.csv"])
    result["dpo"].results["model"], result.report

Each stage is the configuration of a command that exists on its own, and may name what an earlier stage made:
`${stages.sft.model}`. Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.stages.config import StageConfig as StageConfig
    from aligntune.stages.config import StagesConfig as StagesConfig
    from aligntune.stages.config import load_stages as load_stages
    from aligntune.stages.execution import StagesResult as StagesResult
    from aligntune.stages.execution import run_stages as run_stages
    from aligntune.stages.plan import Plan as Plan
    from aligntune.stages.plan import make_plan as make_plan

_NAMES = {
    "Plan": "plan",
    "StageConfig": "config",
    "StagesConfig": "config",
    "StagesResult": "execution",
    "load_stages": "config",
    "make_plan": "plan",
    "run_stages": "execution",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, {name: f"{__name__}.{module}:{name}" for name, module in _NAMES.items()})
