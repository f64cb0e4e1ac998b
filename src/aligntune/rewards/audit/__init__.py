"""The audit of a run's rewards: what moved the advantage, what never did, and what the policy learned to exploit.

    report = audit_run("runs/grpo")
    report.findings[0].message        # "'readability' makes 92% of the advantage with 4% of the weight: ..."

`table` reads the rollouts, `attribution` splits the advantages, `measure` makes the numbers, `checks` and `held_out`
judge them, `rescore` scores the same rollouts under other rewards, `trial` tests a reward on data before a run. Pure
functions with numpy; nothing here loads torch, and no run folder is changed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligntune.rewards.audit.report import AuditReport
    from aligntune.rewards.audit.table import Rollouts

METRICS = "metrics.jsonl"
FEW_STEPS = 10


def audit_run(run: str | os.PathLike[str]) -> AuditReport:
    """Audit a run folder; a run that still trains, too.

    Raises:
        ValidationError: it is no run folder, or holds no rollouts.
    """
    from aligntune.rewards.audit.table import read
    from aligntune.utils.files import read_lines

    return audit(read(run), read_lines(Path(run) / METRICS), str(run))


def audit(rollouts: Rollouts, metrics: Sequence[dict[str, Any]] = (), name: str = "rollouts") -> AuditReport:
    """Audit rollouts.

    Args:
        rollouts: of one run.
        metrics: rows of its `metrics.jsonl`, for held-out values.
        name: of the run, for the report.
    """
    import numpy as np

    from aligntune.rewards.audit.checks import check
    from aligntune.rewards.audit.held_out import held_out_series
    from aligntune.rewards.audit.measure import measure
    from aligntune.rewards.audit.report import AuditReport

    case = measure(rollouts, metrics)
    findings = check(case)
    notes = list(rollouts.notes)
    if not held_out_series(case) and all(rollouts.weighted(n) for n in rollouts.names):
        notes.append(
            "nothing is held out (no evaluation with rewards, no component of weight 0): a hacked reward cannot be seen"
        )
    if case.steps < FEW_STEPS:
        notes.append(f"{case.steps} steps only: changes over the run are hardly visible")
    shown = {i for finding in findings for i in finding.rows}
    return AuditReport(
        run=name,
        facts={
            "rows": len(rollouts),
            "groups": int(rollouts.group.max()) + 1 if len(rollouts) else 0,
            "steps": case.steps,
            "rows without a reward": int(np.isnan(rollouts.total).sum()),
            f"mean length in {rollouts.length_unit}": float(rollouts.length.mean()) if len(rollouts) else 0.0,
        },
        components=case.components,
        correlations=case.correlations,
        how=case.attribution.how,
        residual=case.attribution.shares()["residual"],
        findings=findings,
        notes=notes,
        examples={i: _example(rollouts, i) for i in shown},
    )


def _example(rollouts: Rollouts, i: int) -> dict[str, Any]:
    """One row in plain values."""
    import math

    scores = {"reward": float(rollouts.total[i]), **{n: float(rollouts.raw[n][i]) for n in rollouts.names}}
    return {
        "row": i,
        "step": int(rollouts.step[i]),
        "group": int(rollouts.group[i]),
        "prompt": rollouts.prompt[i],
        "completion": rollouts.completion[i],
        "length": float(rollouts.length[i]),
        "scores": {name: None if math.isnan(value) else value for name, value in scores.items()},
    }
