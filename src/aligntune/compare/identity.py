"""Whether the comparison in a folder is the one that is asked for: `plan.json` against the plan.

It is while the seeds, the arms and the resolved settings of every arm are what they were. Else finished runs would
stand beside runs with other settings, and their difference would be taken for that of the arms.

>>> agree(Path("runs/beta/plan.json"), plan.describe())        # grpo.yaml was edited since
ConfigurationError: the comparison in runs/beta has other settings: train.max_steps: 50 -> 80

Settings are compared, not what they name: the rows of a data file and the weights of a model may change unseen here
(each run's manifest has their hashes, and batches in another order are told in a note).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligntune.compare.plan import CONFIGURATIONS
from aligntune.diagnosis.differences import flat
from aligntune.errors import ConfigurationError

SHOWN = 8
"""Most changed settings that a message names."""
ELSEWHERE = "set another output folder (--output-dir)"
_ABSENT = object()


def agree(path: Path, wanted: Mapping[str, Any]) -> None:
    """Hold the plan on disk against the one that is asked for.

    Args:
        path: of `plan.json`.
        wanted: `Plan.describe()` as JSON has it.

    Raises:
        ConfigurationError: they differ (what differs is named), or the file does not say what its arms were.
    """
    before, folder = _read(path), path.parent
    known = [key for key in wanted if key != CONFIGURATIONS and isinstance(wanted[key], (str, list))]
    if changed := [key for key in known if before.get(key) != wanted[key]]:
        raise ConfigurationError(f"{folder} holds a comparison with another {', '.join(changed)}", hint=ELSEWHERE)
    if not isinstance(before.get(CONFIGURATIONS), dict):
        raise ConfigurationError(
            f"{path} was written by an earlier version and does not hold the settings of the arms, so nobody can tell "
            "whether they are still the same",
            hint=f"{ELSEWHERE}; the results so far are in comparison.json and in the run folders",
        )
    if found := changes(before[CONFIGURATIONS], wanted[CONFIGURATIONS]):
        source = wanted.get("source")
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ConfigurationError(
            f"the comparison in {folder} has other settings: {'; '.join(found[:SHOWN])}{more}",
            hint=f"put them back{f' in {source}' if isinstance(source, str) else ''}, or {ELSEWHERE}",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigurationError(
            f"{path} is damaged ({error}), so nobody can tell what was compared", hint=ELSEWHERE
        ) from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path} is not the plan of a comparison", hint=ELSEWHERE)
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of the same arms: `key: old -> new`, with the arms where not all have it."""
    found: dict[str, list[str]] = {}
    for arm in now:
        one, two = flat(before.get(arm, {})), flat(now[arm])
        for key in dict.fromkeys([*one, *two]):
            if (a := one.get(key, _ABSENT)) != (b := two.get(key, _ABSENT)):
                found.setdefault(f"{key}: {_short(a)} -> {_short(b)}", []).append(arm)
    return [text if len(arms) == len(now) else f"{text} ({', '.join(arms)})" for text, arms in found.items()]


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "(nothing)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
