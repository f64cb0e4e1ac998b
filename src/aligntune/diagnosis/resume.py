"""Does this configuration resume exactly? It is tried: straight through, and stopped half way and resumed.

    straight   steps 1 .. N
    stopped    steps 1 .. k, checkpoint, a new trainer, steps k+1 .. N

Compared bit for bit: every line of `metrics.jsonl` (without time, throughput and memory), the model, and in the last
checkpoint the optimizer, the schedule, the random states, the open log window and the algorithm's own state. Where
something differs, the straight run is made once more: what differs there too is not the resume's doing (kernels without
a fixed order, rewards that draw or ask a service).

>>> proof = prove_resume(config)
>>> proof.exact
True

The runs are short (k is the first step from 3 on that the algorithm can go on from, N is 2 k), see at most `ROWS` rows
of each data set, and lie in a temporary folder. It says nothing about other numbers of processes or another machine.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntune.core.config.root import RunConfig
from aligntune.errors import ConfigurationError

ROWS = 256
"""Most rows of each data set."""
FIRST = 3
"""Earliest step to stop after: an odd one leaves a window of two steps half filled."""
TIMED = ("time", "runtime", "per_second", "memory", "seconds", "tokens_per")
"""Parts of metric names that tell of time, throughput and memory."""
STATES = {
    "optimizer.pt": "the optimizer's state",
    "scheduler.pt": "the learning rate schedule",
    "rng_state*.pth": "the random states",
    "window-*.json": "the open window of the log",
    "aligntune_state.*": "the algorithm's own state",
    "aligntune_reference.safetensors": "the moving reference",
    "*.safetensors": "the weights",
}
"""Files of the last checkpoint, and what they hold."""


@dataclass(frozen=True)
class Proof:
    """What was found.

    Attributes:
        steps: optimizer steps of each run.
        stopped_at: the step after which the second one was stopped.
        differences: what is not equal, as (state, evidence).
        repeatable: whether two straight runs are equal; None where that was not tried, because nothing differed.
        folder: where the runs were kept, if they were.
    """

    steps: int
    stopped_at: int
    differences: list[tuple[str, str]]
    repeatable: bool | None = None
    folder: str | None = None

    @property
    def exact(self) -> bool:
        """Whether the resumed run equals the straight one to the last bit."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = [{"state": state, "evidence": evidence} for state, evidence in self.differences]
        return {**dataclasses.asdict(self), "exact": self.exact, "differences": found}

    def __str__(self) -> str:
        tried = f"{self.steps} steps straight, against {self.stopped_at}, a checkpoint, and the rest"
        if self.exact:
            return f"exact: {tried} give the same metrics, weights, optimizer and random states, bit for bit"
        lines = [f"not exact: {tried} differ", *(f"- {state}: {evidence}" for state, evidence in self.differences)]
        if self.repeatable is False:
            lines.append(
                "two straight runs differ as well, so this is not the resume's doing: the kernels of this device, or "
                "rewards that draw or ask a service, do not repeat themselves"
            )
        else:
            lines.append("two straight runs are equal, so a checkpoint of this configuration does not hold everything")
        if self.folder:
            lines.append(f"kept in {self.folder}")
        return "\n".join(lines)


def small(config: RunConfig, folder: Path) -> tuple[RunConfig, int]:
    """The configuration shortened for the proof, and the step to stop after."""
    stop = next((s for s in range(FIRST, 1000) if config.algorithm.resumable(config, s)), None)
    if stop is None:
        raise ConfigurationError(
            "none of the first 1,000 steps is one that a run could go on from",
            hint="lower algo.steps_per_generation or algo.num_iterations: a stop waits for the end of what was sampled",
        )
    sources = [dataclasses.replace(s, max_samples=min(s.max_samples or ROWS, ROWS)) for s in config.sources]
    held = config.evaluation.dataset
    held = held and dataclasses.replace(held, max_samples=min(held.max_samples or ROWS, ROWS))
    train = dataclasses.replace(
        config.train, max_steps=2 * stop, save_steps=stop, save_total_limit=None, time_limit=None, stop_grace=None,
        keep_best="none", auto_batch=False,
    )  # fmt: skip
    changes: dict[str, Any] = {"dataset": sources[0]} if config.kind == "sft" else {"datasets": sources}
    every = None if held is None or config.evaluation.every is None else stop
    made = dataclasses.replace(
        config,
        **changes,
        output_dir=str(folder),
        isolation="auto",
        train=train,
        evaluation=dataclasses.replace(config.evaluation, dataset=held, every=every, tasks=[], at_start=False),
        logging=dataclasses.replace(config.logging, steps=2, report_to=[]),
    )
    return made, stop


def prove_resume(config: RunConfig, *, keep: bool = False) -> Proof:
    """Make the runs and compare them.

    Args:
        config: a resolved configuration.
        keep: leave the runs' folders.

    Raises:
        AlignTuneError: a run failed.
        KeyboardInterrupt: it was stopped.
    """
    if config.algorithm.driver:
        raise ConfigurationError(
            f"{config.algorithm.key} trains in rounds of its own, for which there is no short proof",
            hint="run a short configuration twice, and stop one of them with Ctrl-C",
        )
    work = Path(tempfile.mkdtemp(prefix="aligntune-resume-"))
    try:
        made, stop = small(config, work / "straight")
        steps = made.train.max_steps or 2 * stop
        _run(made)
        second = dataclasses.replace(made, output_dir=str(work / "stopped"))
        _run(second, stop_at=stop)
        _run(second, resume="latest")
        found = differences(work / "straight", work / "stopped", steps)
        repeatable = None
        if found:
            _run(dataclasses.replace(made, output_dir=str(work / "again")))
            repeatable = not differences(work / "straight", work / "again", steps)
        return Proof(steps, stop, found, repeatable, str(work) if keep else None)
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)


def _run(config: RunConfig, *, resume: str | None = None, stop_at: int | None = None) -> None:
    from aligntune.core.backend_factory import create_trainer

    trainer: Any = create_trainer(config)
    if stop_at is not None:
        build = trainer._build

        def stopping(stop: Any, progress: Any) -> Any:
            after = stop.after_step

            def after_step() -> None:
                after()
                if trainer.state.step >= stop_at:
                    stop.reason = "the proof stops here"

            stop.after_step = after_step
            return build(stop, progress)

        trainer._build = stopping
    try:
        trainer.train(resume=resume)
    except KeyboardInterrupt:
        if stop_at is None or trainer.state.step != stop_at:
            raise
    trainer._hf = trainer._loaded = None
    gc.collect()


def differences(straight: Path, other: Path, steps: int) -> list[tuple[str, str]]:
    """What of two finished runs is not equal, as (state, evidence)."""
    found = []
    ours, theirs = _metrics(straight), _metrics(other)
    if ours != theirs:
        found.append(("metrics.jsonl", _first_difference(ours, theirs)))
    for file in sorted(straight.glob("*.safetensors")):
        if not _equal(file, other / file.name):
            found.append((f"the model ({file.name})", _tensors(file, other / file.name)))
    last, against = straight / f"checkpoint-{steps}", other / f"checkpoint-{steps}"
    seen: set[Path] = set()
    for pattern, what in STATES.items():
        for file in sorted(set(last.glob(pattern)) - seen):
            seen.add(file)
            if not _equal(file, against / file.name):
                found.append((what, f"{file.name} of checkpoint-{steps} differs"))
    return found


def _metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [_timeless(row) for row in rows]


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not any(part in k for part in TIMED)}


def _first_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    for a, b in zip(ours, theirs, strict=False):
        for name in {**a, **b}:
            if a.get(name) != b.get(name):
                return f"{name} of step {a.get('step')} is {a.get(name)} straight and {b.get(name)} resumed"
    return f"{len(ours)} lines straight and {len(theirs)} resumed"


def _equal(a: Path, b: Path) -> bool:
    """Equality of two stored states: by bytes, else by what they hold."""
    if not b.is_file():
        return False
    if a.read_bytes() == b.read_bytes():
        return True
    if a.suffix == ".json":
        left, right = (json.loads(f.read_text(encoding="utf-8")) for f in (a, b))
        for state in (left, right):
            if isinstance(state.get("metrics"), dict):
                state["metrics"] = _timeless(state["metrics"])
        return bool(left == right)
    if a.suffix == ".safetensors":
        return _tensors(a, b) == ""
    return False


def _tensors(a: Path, b: Path) -> str:
    """The first tensor that differs, and by how much; empty if none does."""
    import torch
    from safetensors.torch import load_file

    left, right = load_file(a), load_file(b)
    if left.keys() != right.keys():
        return "other tensors"
    for name, tensor in left.items():
        if not torch.equal(tensor, right[name]):
            return f"{name} differs by up to {float((tensor.float() - right[name].float()).abs().max()):.3g}"
    return ""
