"""What one run of a comparison measured, read from its folder.

| value | from | better |
|---|---|---|
| `step_time` | median seconds between two steps, after the warm-up | lower |
| `tokens_per_second` | tokens seen after the warm-up / their time | higher |
| `peak_memory` | most resident memory of the process, bytes | lower |
| `peak_gpu_memory` | most memory that torch held on the GPU, bytes | lower |
| `wall_time` | seconds of the process, start and model loading included; none of a run that was cut | lower |
| everything else | the run's last logged and held-out values | by its name |

Timings come from `metrics.jsonl`, in which a comparison logs every step. The first `WARM_UP` steps are left out: they
compile, allocate and fill caches. Steps beside an evaluation or a checkpoint are longer, which the median passes over.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from aligntune.utils.files import number, read_lines
from aligntune.utils.run_folder import METRICS, read_manifest

WARM_UP = 2
"""Steps that timings leave out, where a run has more than twice as many."""
COSTS = ("step_time", "peak_memory", "peak_gpu_memory", "wall_time")
RATIOS = ("tokens_per_second", *COSTS)
"""Values that are compared by their ratio: they are positive, and a share of them means something."""
CURVES = (
    "loss",
    "reward",
    "rewards/accuracies",
    "eval_nll",
    "eval_reward",
    "eval_f1",
    "eval_accuracy",
    "kl",
    "entropy",
)
FACTS = ("backend", "patch_fingerprint", "data_order", "packages", "system", "device", "environment")
"""Entries of a manifest that say where, with what and on which batches a run was made."""
_LOWER = ("loss", "nll", "perplexity", "mse", "kl", "brier", "ece", "time", "memory", "clip")
_HIGHER = ("reward", "accurac", "f1", "precision", "recall", "margin", "auc", "tokens_per_second", "pass@")
_LEFT_OUT = ("step", "epoch", "time", "learning_rate", "num_tokens", "grad_norm")


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        arm: its name.
        seed: of training.
        folder: of the run.
        status: finished, or failed.
        values: name to number.
        curves: metric name to (step, value) rows.
        items: `task/metric` to item id to score, of evaluations whose items were kept.
        error: why it failed.
        facts: the manifest's entries named in `FACTS`.
    """

    arm: str
    seed: int
    folder: str
    status: str
    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    items: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; without the items, which stand in the run's folder."""
        return {k: v for k, v in asdict(self).items() if k != "items"}


def direction(name: str) -> bool | None:
    """Whether larger values are better; None where the name does not say."""
    if any(part in name for part in _HIGHER):
        return True
    return False if any(part in name for part in _LOWER) else None


def measure(arm: str, seed: int, folder: Path, process: Mapping[str, Any]) -> Measured:
    """Read a run's folder.

    Args:
        arm: name of the arm.
        seed: of training.
        folder: of the run.
        process: what its process left: `code`, `seconds`, `error`.
    """
    manifest = read_manifest(folder) or {}
    status = str(manifest.get("status", "missing"))
    facts = {key: manifest[key] for key in FACTS if manifest.get(key) is not None}
    if status != "finished":
        return Measured(arm, seed, str(folder), "failed", error=_why(manifest, process, status), facts=facts)
    rows = read_lines(folder / METRICS)
    summary = manifest.get("summary") or {}
    values = {**_final(rows), **_numbers(summary.get("metrics") or {})}
    values = {k: v for k, v in values.items() if k not in _LEFT_OUT}
    values |= _numbers({"final_loss": summary.get("final_loss"), "peak_memory": summary.get("peak_memory")})
    # A run that was cut and went on has no time of its own: what its first process took is not known to the second.
    whole = None if manifest.get("attempts") else process.get("seconds")
    values |= _numbers({"peak_gpu_memory": summary.get("peak_gpu_memory"), "wall_time": whole})
    values |= timings(rows)
    return Measured(arm, seed, str(folder), "finished", values, _curves(rows), _items(folder), facts=facts)


def timings(rows: list[dict[str, Any]], warm_up: int = WARM_UP) -> dict[str, float]:
    """`step_time` and `tokens_per_second` of rows of `metrics.jsonl` that log every step.

    Nothing where fewer than two steps remain.
    """
    steps = [row for row in rows if "loss" in row and number(row.get("time")) is not None]
    skipped = warm_up if len(steps) > 2 * warm_up else 0
    kept = steps[skipped:]
    gaps = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(kept) if b["step"] > a["step"]]
    if not gaps:
        return {}
    found = {"step_time": statistics.median(gaps)}
    tokens = [number(row.get("num_tokens")) for row in (kept[0], kept[-1])]
    if tokens[0] is not None and tokens[1] is not None and tokens[1] > tokens[0]:
        # By the median step, since evaluations and checkpoints stand between some of them.
        steps_done = kept[-1]["step"] - kept[0]["step"]
        found["tokens_per_second"] = (tokens[1] - tokens[0]) / steps_done / found["step_time"]
    return found


def _final(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of every metric."""
    last: dict[str, float] = {}
    for row in rows:
        last |= _numbers(row)
    return last


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    found = {k: number(v) for k, v in values.items()}
    return {k: v for k, v in found.items() if v is not None and math.isfinite(v)}


def _curves(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in _numbers({k: row[k] for k in CURVES if k in row}).items():
            found.setdefault(key, []).append((row["step"], value))
    return found


def _items(folder: Path) -> dict[str, dict[str, float]]:
    """Scores of the items of evaluations inside the run's folder (`**/items/*.jsonl`)."""
    found: dict[str, dict[str, list[float]]] = {}
    for path in sorted(folder.glob("**/items/*.jsonl")):
        for item in read_lines(path):
            for metric, score in (item.get("scores") or {}).items():
                if score is not None:
                    found.setdefault(f"{path.stem}/{metric}", {}).setdefault(item["id"], []).append(float(score))
    return {key: {i: math.fsum(v) / len(v) for i, v in scores.items()} for key, scores in found.items()}


def _why(manifest: Mapping[str, Any], process: Mapping[str, Any], status: str) -> str:
    error = manifest.get("error") or {}
    if error:
        return f"{error.get('type')}: {error.get('message')}"
    if process.get("error"):
        return str(process["error"])
    return f"its process ended with code {process.get('code')} (status {status})"


def read_process(path: Path) -> dict[str, Any]:
    """What `execution` left about a run's process; nothing where it has not ended."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
