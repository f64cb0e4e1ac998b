"""The check for a hacked reward: what is trained on rises while what is only measured does not.

Measured only: components of weight 0 in the rollouts, and the rows of `metrics.jsonl` with a held-out reward
(`eval_reward`, `eval_rewards/<name>`) or another held-out quality (accuracy, F1). A component's held-out row counts
where the component has no weight, or where it is `eval_reward`.

Source: Gao et al. 2022 (arXiv:2210.10760): the proxy goes on rising while the gold score turns. Where nothing is held
out the check is not made, and the report says so.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aligntune.rewards.audit.report import Finding

if TYPE_CHECKING:
    from aligntune.rewards.audit.measure import Case

CONFIDENCE = 0.999
"""Of each interval behind a finding, here and in `checks`: about ten of them are looked at for each component."""
EFFECT = 0.5
"""Standard deviations of a change that counts: a medium effect (Cohen 1988)."""
LEAST_EVALUATIONS = 3
SOURCE = "Gao et al. 2022, arXiv:2210.10760; the size is our choice"
_QUALITY = re.compile(r"eval_(.*/)?(accuracy|accuracies|exact_match|f1|f1_macro|pass@\d+|win_rate)")


def held_out_series(case: Case) -> dict[str, list[tuple[float, float]]]:
    """Name to (step, value) of every held-out quality of `metrics.jsonl`."""
    from aligntune.utils.files import number

    free = {name for name in case.rollouts.names if not case.rollouts.weighted(name)}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in case.metrics:
        for key, raw in row.items():
            name = key.removeprefix("eval_rewards/")
            if key == "eval_reward" or (name != key and name in free) or _QUALITY.fullmatch(key):
                value = number(raw)
                if value is not None and math.isfinite(value) and isinstance(row.get("step"), (int, float)):
                    found.setdefault(key, []).append((float(row["step"]), value))
    return found


def hacked(case: Case) -> Iterator[Finding]:
    """The trained total rises, and a measured one falls or stays."""
    r = case.rollouts
    rise, effect = case.change(r.total, CONFIDENCE), case.effect(r.total)
    if rise is None or rise.low is None or effect is None or rise.low <= 0 or effect < EFFECT:
        return
    proxy = {"reward": str(case.components["total"].change), "effect": effect if math.isfinite(effect) else 100.0}
    for name in (n for n in r.names if not r.weighted(n)):
        values = r.values(name)
        found, size = case.change(values, CONFIDENCE), case.effect(values)
        if found is None or found.low is None or found.high is None or size is None:
            continue
        spread = found.value / size if size and math.isfinite(size) else 0.0
        falls, flat = found.high < 0, spread > 0 and found.high < 0.25 * min(effect, 4.0) * spread
        if falls or flat or size == 0:
            yield _finding(
                name,
                falls,
                {**proxy, f"held-out '{name}'": str(case.components[name].change)},
                _worst(case, name),
                effect,
            )
    for key, series in held_out_series(case).items():
        values_only = [value for _, value in sorted(series)]
        if len(values_only) < LEAST_EVALUATIONS:
            continue
        first, end = values_only[0], sum(values_only[-2:]) / 2
        steps = [b - a for a, b in itertools.pairwise(values_only)]
        noise = math.sqrt(sum(s * s for s in steps) / (2 * len(steps)))
        if end <= first:
            falls = first - end > 2 * noise
            evidence = {**proxy, f"{key} first": first, f"{key} last": end, "evaluations": len(values_only)}
            yield _finding(key, falls, evidence, _best(case), effect)


def _finding(name: str, falls: bool, evidence: dict[str, object], rows: list[int], effect: float) -> Finding:
    what = "falls" if falls else "does not rise with it"
    return Finding(
        "reward_hack", "critical" if falls else "warning", name,
        f"the reward rises while '{name}', which is not trained on, {what}", evidence,
        "reward up by half a standard deviation (99.9% interval above 0), the held-out value not up", SOURCE,
        "read the best-scored last answers; stop earlier (train.max_steps), raise algo.beta, or put what they exploit "
        "into the reward and score these rollouts again: `aligntune rewards rescore`",
        rows, effect if math.isfinite(effect) else 100.0,
    )  # fmt: skip


def _best(case: Case) -> list[int]:
    """Three rows of the last fifth with the highest reward."""
    import numpy as np

    rows = case.last[~np.isnan(case.rollouts.total[case.last])]
    return [int(i) for i in rows[np.argsort(-case.rollouts.total[rows], kind="stable")[:3]]]


def _worst(case: Case, name: str) -> list[int]:
    """Three rows of the last fifth with high reward and low held-out score."""
    import numpy as np

    rows, values = case.last, case.rollouts.values(name)
    gap = values[rows] - case.rollouts.total[rows]
    rows = rows[~np.isnan(gap)]
    return [int(i) for i in rows[np.argsort(gap[~np.isnan(gap)], kind="stable")[:3]]]
