"""Which evaluation of a run is the best: by `train.best_metric`, or by the first value of `PRIMARY` that it has.

    train: {best_metric: eval/sums/accuracy, keep_best: checkpoint}
    train: {best_metric: reward, best_mode: max}          # a training value: the newest one that was logged

A metric that is asked for by name may be any value in `metrics.jsonl`. Nothing is ever judged by the loss unless it is
asked for: in policy optimisation the loss hovers about zero and says nothing. Values that are not finite never count as
better, and equal values are no gain.

Its direction is that of the table below or of the task's metric; for a metric of neither `train.best_mode` must say it.
The best step is written into the manifest (`best`) and the result. It compares single values and knows no intervals.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError
from aligntune.eval.in_training import PREFIX, directions
from aligntune.registry import nearest
from aligntune.utils.files import read_lines
from aligntune.utils.run_folder import EVALUATIONS

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

BEFORE = "before"
"""Where the evaluation of the starting model is, in the folder of the newest."""
PRIMARY = (
    ("eval_f1", True),
    ("eval_f1_macro", True),
    ("eval_mse", False),
    ("eval_rewards/accuracies", True),
    ("eval_rewards/auc", True),
    ("eval_reward", True),
    ("eval_nll", False),
)
"""The value that decides which evaluation was the best, and whether larger is better."""
SMALLER = ("loss", "nll", "perplexity", "mse", "ece", "brier", "kl", "entropy")
"""Last words of names whose smaller values are better."""
LARGER = ("accuracy", "accuracies", "reward", "margins", "auc", "f1", "f1_macro", "precision", "recall")
"""Last words of names whose larger values are better; so are all components of the reward."""


def held_out(name: str) -> bool:
    """Whether a name in `metrics.jsonl` is an evaluation's."""
    return name.startswith(("eval_", PREFIX))


def count(trainer: Trainer, step: int, values: dict[str, float]) -> None:
    """Remember an evaluation in the run's state: as the best one so far, or as one without gain.

    Args:
        trainer: the run.
        step: of the evaluation.
        values: what it measured, by the names in `metrics.jsonl`.

    Raises:
        ConfigurationError: `train.best_metric` is none of the values, or its direction is not known.
    """
    state = trainer.state
    state.evaluated_step = step
    name = _chosen(trainer, values)
    value = _value(trainer, name, values)
    if name is None or value is None:
        state.without_gain += 1
        return
    larger = _larger(trainer, name)
    best = state.best_metric
    if math.isfinite(value) and (best is None or (value > best if larger else value < best)):
        state.best_name, state.best_mode = name, "max" if larger else "min"
        state.best_metric, state.best_step, state.without_gain = value, step, 0
        state.best_values, state.best_intervals = dict(values), dict(state.intervals)
    else:
        state.without_gain += 1


def has_value(trainer: Trainer, values: dict[str, float]) -> bool:
    """Whether an evaluation has a value that says which is better."""
    return trainer.config.train.best_metric is not None or _first(values) is not None


def _first(values: dict[str, float]) -> str | None:
    """The first of `PRIMARY`, else the first task's headline, which stands first among the tasks' values."""
    found = next((name for name, _ in PRIMARY if name in values), None)
    return found or next((name for name in values if name.startswith(PREFIX)), None)


def _chosen(trainer: Trainer, values: dict[str, float]) -> str | None:
    asked = trainer.config.train.best_metric
    if asked is None:
        return _first(values)
    known = {**trainer.state.metrics, **values}
    if asked in values or (asked in known and not held_out(asked)):
        return asked
    if not held_out(asked) and all(map(held_out, trainer.state.metrics)):
        return None  # no step is logged yet
    names = [name for name in known if name not in ("step", "epoch", "time", "eval/seconds")]
    raise ConfigurationError(
        f"train.best_metric: there is no value '{asked}'",
        hint=f"{nearest(asked, names)}; the values are {', '.join(sorted(names))}",
    )


def _value(trainer: Trainer, name: str | None, values: dict[str, float]) -> float | None:
    return None if name is None else values.get(name, trainer.state.metrics.get(name))


def _larger(trainer: Trainer, name: str) -> bool:
    """Whether larger values of a metric are better.

    Raises:
        ConfigurationError: nobody knows.
    """
    mode = trainer.config.train.best_mode
    if mode is not None:
        return mode == "max"
    known = {**dict(PRIMARY), **trainer._directions}
    if name in known:
        return known[name]
    last = name.removeprefix("eval_").rpartition("/")[2]
    if last in SMALLER:
        return False
    if last in LARGER or name.startswith(("eval_rewards/", "rewards/")):
        return True
    raise ConfigurationError(
        f"train.best_metric: nobody can tell whether larger or smaller values of {name} are better",
        hint="set train.best_mode to max or min",
    )


def stored_evaluations(folder: Path) -> tuple[dict[str, bool], dict[int, list[dict[str, Any]]]]:
    """What a run has measured before it was stopped: directions of the tasks' metrics, and by step the rows."""
    rows = read_lines(folder / EVALUATIONS)
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        steps.setdefault(int(row["step"]), []).append(row)
    return directions(rows), steps


def best_entry(trainer: Trainer) -> dict[str, Any] | None:
    """What the manifest and the result say about the best evaluation; None without one."""
    state = trainer.state
    if state.best_step is None:
        return None
    folder = Path(trainer.config.output_dir).expanduser().absolute()
    at = folder / f"checkpoint-{state.best_step}"
    ends_there = state.best_step == state.step or state.best_restored
    return {
        "metric": state.best_name,
        "mode": state.best_mode,
        "value": state.best_metric,
        "step": state.best_step,
        "checkpoint": str(at) if at.is_dir() else None,
        "model": str(folder) if ends_there else None,
    }


def keep_items(source: Path, target: Path) -> None:
    """Copy the results and items of an evaluation on tasks, where there is one."""
    if (source / "results.json").exists():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BEFORE))
