"""What a plan would take: steps, time, memory and disk of each stage, and which of them nobody can know yet.

| value | from |
|---|---|
| steps | `train.max_steps`, or epochs x rows / batch, where the rows can be counted without reading the hub |
| time | an earlier attempt of the stage in this folder: its seconds per step x steps, or its seconds |
| memory | `aligntune.utils.memory` for the model that the stage's model was made from, on this machine |
| a comparison | the sum of its runs' steps and disk, and the largest memory, as they are made one after the other |
| disk | trained weights, and for each kept checkpoint trained weights and optimizer, by the same model |

>>> rows = estimates(make_plan("assistant.yaml"))
>>> rows[1].steps, rows[1].memory
(200, 1710000000)

An unknown value is None, with the reason in `notes`; totals say how many stages they leave out. Time on a machine that
has run nothing yet is not guessed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.stages.config import REPLACED
from aligntune.stages.kinds import RECORD, Compare, RewardModel, Train
from aligntune.stages.plan import Plan, Planned
from aligntune.stages.record import read_record

TRAINING = ("train", "reward_model", "compare")
"""Kinds of stages that have steps."""
ANSWERING = ("pairs", "evaluate")
"""Kinds of stages that load a model and train none."""


@dataclass(frozen=True)
class Estimated:
    """One stage.

    Attributes:
        name, kind: of the stage.
        status: what its record says: new, finished, failed, interrupted, running.
        steps: optimizer steps; None for stages that train nothing, and where they are not known.
        seconds: expected; of a finished stage what it took.
        memory: bytes at the peak.
        disk: bytes that it will write.
        notes: why something is not known.
    """

    name: str
    kind: str
    status: str
    steps: int | None = None
    seconds: float | None = None
    memory: int | None = None
    disk: int | None = None
    notes: list[str] = field(default_factory=list)


def estimates(plan: Plan) -> list[Estimated]:
    """One row for each stage of a plan."""
    return [_stage(plan, stage) for stage in plan.stages]


def totals(rows: Sequence[Estimated]) -> dict[str, Any]:
    """Sums over stages that are to be made; the largest memory; and the stages that each sum leaves out."""
    left = list(rows)
    trained = [row for row in left if row.kind in TRAINING]
    found: dict[str, Any] = {
        "stages": len(left),
        "steps": sum(row.steps or 0 for row in trained),
        "steps_unknown": [row.name for row in trained if row.steps is None],
        "seconds": sum(row.seconds or 0.0 for row in left),
        "seconds_unknown": [row.name for row in left if row.seconds is None and row.kind != "report"],
        "memory": max((row.memory or 0 for row in left), default=0) or None,
        "disk": sum(row.disk or 0 for row in left),
        "disk_unknown": [row.name for row in trained if row.disk is None],
    }
    return found


def free_disk(plan: Plan) -> int:
    """Bytes that are free where the stages will write."""
    import shutil

    existing = next(path for path in (plan.output_dir, *plan.output_dir.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _stage(plan: Plan, stage: Planned) -> Estimated:
    record = read_record(stage.folder) or {}
    status = str(record.get("status", "new"))
    row = Estimated(stage.name, stage.kind_name, status)
    earlier = record if status == "finished" else _earlier(plan, stage)
    if isinstance(stage.kind, Train):
        return _trained(plan, stage, row, earlier)
    if isinstance(stage.kind, Compare):
        return _compared(plan, stage, row, earlier)
    seconds = float(earlier["seconds"]) if earlier.get("status") == "finished" else None
    notes = [] if seconds is not None or row.kind == "report" else ["time: nothing like it has run here"]
    if earlier.get("memory") is None and row.kind in ANSWERING:
        notes.append("memory and disk: those of answering are not modelled; the model's weights are the least")
    return dataclasses.replace(row, seconds=seconds, memory=earlier.get("memory"), notes=notes)


def _earlier(plan: Plan, stage: Planned) -> dict[str, Any]:
    """The record of the newest finished stage of this name that was set aside; empty where there is none."""
    name = f"[0-9][0-9]-{stage.name}" if plan.config.numbered else stage.name
    kept = sorted(
        (plan.output_dir / REPLACED).glob(f"*/{name}/{RECORD}"),
        key=lambda path: path.stat().st_mtime_ns,
    )
    found = [read_record(path.parent) or {} for path in kept]
    return next((r for r in reversed(found) if r.get("status") == "finished" and r["kind"] == stage.kind_name), {})


def _trained(plan: Plan, stage: Planned, row: Estimated, earlier: Mapping[str, Any]) -> Estimated:
    assert isinstance(stage.kind, Train)
    config = stage.kind.typed()
    steps, notes = config.train.max_steps, []
    if steps is None:
        steps, why = _steps(plan, stage, config)
        notes += [why] if why else []
    seconds: float | None = None
    done = (earlier.get("numbers") or {}).get("total_steps")
    if row.status == "finished":
        seconds = float(earlier["seconds"])
    elif done and steps:
        seconds = float(earlier["seconds"]) * steps / done
    else:
        notes.append("time: nothing like it has run here")
    memory, disk, why = _size(plan, config, steps, adapters=not isinstance(stage.kind, RewardModel))
    notes += [why] if why else []
    return dataclasses.replace(row, steps=steps, seconds=seconds, memory=memory, disk=disk, notes=notes)


def _compared(plan: Plan, stage: Planned, row: Estimated, earlier: Mapping[str, Any]) -> Estimated:
    """A comparison: the runs of all arms and seeds; those of one arm are alike."""
    assert isinstance(stage.kind, Compare)
    runs = stage.kind.runs()
    found: dict[str, list[int | None]] = {"steps": [], "memory": [], "disk": []}
    notes: list[str] = []
    for arm in runs.arms:
        config = runs.config(arm, runs.seeds[0])
        steps, why = (config.train.max_steps, "") if config.train.max_steps else _steps(plan, stage, config)
        memory, disk, other = _size(plan, config, steps, adapters=True)
        notes += [f"{arm.name}: {said}" for said in (why, other) if said]
        for name, value in (("steps", steps), ("memory", memory), ("disk", disk)):
            found[name].append(value)
    seconds = float(earlier["seconds"]) if earlier.get("status") == "finished" else None
    notes += ["time: nothing like it has run here"] if seconds is None else []
    known = {name: [v for v in values if v is not None] for name, values in found.items()}
    whole = {name: len(values) == len(runs.arms) for name, values in known.items()}
    return dataclasses.replace(
        row,
        steps=sum(known["steps"]) * len(runs.seeds) if whole["steps"] else None,
        seconds=seconds,
        memory=max(known["memory"]) if whole["memory"] else None,
        disk=sum(known["disk"]) * len(runs.seeds) if whole["disk"] else None,
        notes=notes,
    )


def _steps(plan: Plan, stage: Planned, config: Any) -> tuple[int | None, str]:
    """Epochs x rows / batch; the rows of files that can be counted, and of parts that a stage has made."""
    rows = 0
    for source in config.sources:
        path = Path(source.name).expanduser()
        if source.max_samples is not None:
            rows += source.max_samples
        elif path.suffix == ".jsonl" and path.is_file():
            with open(path, "rb") as lines:
                rows += sum(1 for line in lines if line.strip())
        else:
            return None, f"steps: the rows of {source.name} are not counted yet; train.max_steps would say"
    batch = config.train.per_device_batch_size * config.train.gradient_accumulation_steps
    if config.algorithm.data is Schema.PROMPT:
        rows *= getattr(config.algorithm, "num_generations", 1)
    return math.ceil(config.train.num_epochs * rows / batch), ""


def _size(plan: Plan, config: Any, steps: int | None, *, adapters: bool) -> tuple[int | None, int | None, str]:
    """Memory and disk of a run."""
    from aligntune.preflight.memory import device_of, setting_of, shape
    from aligntune.utils.memory import estimate

    named = dataclasses.replace(config.model, name_or_path=origin(plan, config.model.name_or_path))
    config = dataclasses.replace(config, model=named)
    if not adapters:
        return None, None, "memory and disk: those of reward models are not modelled"
    made, why = shape(config)
    manager, precision = device_of(config)
    if made is None or manager is None:
        return None, None, f"memory and disk: {why or precision}"
    said = estimate(made, setting_of(config, made, device=manager.device, precision=str(precision)))
    weights = said.gradients  # 4 bytes for each trained parameter, as they are saved
    train = config.train
    kept = 0
    if train.save_steps is not None:
        written = math.ceil(steps / train.save_steps) if steps and isinstance(train.save_steps, int) else 1
        kept = min(written, train.save_total_limit or written)
    return said.peak, weights + kept * (weights + said.optimizer), ""


def origin(plan: Plan, name: str) -> str:
    """The model that a stage's model was made from, through every stage in between."""
    for stage in plan.stages:
        if str(stage.folder) == name:
            return origin(plan, str((stage.kind.config.get("model") or {}).get("name_or_path", name)))
    return name
