"""Comparisons as experiments: arms and seeds from one file, each run in a fresh process, verdicts with a stated margin.

    comparison = compare("dpo.yaml", ["backend=[trl,unsloth]"], seeds=3, margin=0.02, output_dir="runs/backends")
    print(comparison)

`plan` says what is run, `identity` whether a folder holds it already, `execution` runs it, `measure` reads what came
out, `analysis` draws the conclusions, `page` draws them, `probe` checks two backends on one batch before an hour is
spent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.compare.analysis import Comparison
    from aligntune.compare.execution import compare
    from aligntune.compare.plan import Arm, Plan, make_plan

_NAMES = {
    "Arm": "aligntune.compare.plan:Arm",
    "Comparison": "aligntune.compare.analysis:Comparison",
    "Plan": "aligntune.compare.plan:Plan",
    "compare": "aligntune.compare.execution:compare",
    "make_plan": "aligntune.compare.plan:make_plan",
}

__all__ = ["Arm", "Comparison", "Plan", "compare", "make_plan"]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
