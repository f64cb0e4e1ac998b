"""What a trainer knows about its run, and what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from aligntune.utils.device import peak_gpu_bytes


@dataclass
class TrainingState:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the data done.
        status: new, running, finished, interrupted or failed.
        best_metric: the best evaluation's value so far (`core.best` says which value).
        best_name: its name in `metrics.jsonl`.
        best_mode: whether larger (`max`) or smaller (`min`) is better.
        best_step: the step of `best_metric`.
        best_checkpoint: the checkpoint that `train.keep_best: checkpoint` keeps.
        best_restored: whether the model has the weights of `best_step` again.
        checkpoint_path: the newest checkpoint.
        metrics: the newest logged values, by TRL's names.
        intervals: the newest 95% intervals, [low, high], of held-out and task values that have one.
        best_values: all values of the best evaluation.
        best_intervals: their intervals.
        evaluated_step: the step of the newest evaluation.
        without_gain: evaluations since the best one.
        evaluation_seconds: what `evaluation.tasks` took in this process.
    """

    step: int = 0
    epoch: float = 0.0
    status: str = "new"
    best_metric: float | None = None
    best_step: int | None = None
    checkpoint_path: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    best_values: dict[str, float] = field(default_factory=dict)
    evaluated_step: int | None = None
    without_gain: int = 0
    best_name: str | None = None
    best_mode: str | None = None
    best_checkpoint: str | None = None
    best_restored: bool = False
    evaluation_seconds: float = 0.0
    intervals: dict[str, list[float]] = field(default_factory=dict)
    best_intervals: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult(Mapping[str, Any]):
    """The outcome of `train()`; a mapping too (`result["final_loss"]`).

    Attributes:
        final_loss: mean training loss over the run, as the trainer reports it.
        total_steps: optimizer steps done, those before a resume included.
        training_time: seconds in the training loop of this process.
        model_path: where the model was saved.
        peak_memory: most resident memory of the process in bytes.
        metrics: last training values, and evaluation's with the prefix `eval_` (held-out rows) or `eval/` (tasks).
        intervals: 95% intervals, [low, high], of evaluation's values, by the same names (docs/evaluation.md says which
            have none, and why).
        best: metric, mode, value, step, checkpoint and model of the best evaluation; None without evaluations.
        peak_gpu_memory: most memory that PyTorch held on this process's GPUs, in bytes; None without one.
    """

    final_loss: float
    total_steps: int
    training_time: float
    model_path: str
    peak_memory: int
    metrics: dict[str, float]
    best: dict[str, Any] | None = None
    intervals: dict[str, list[float]] = field(default_factory=dict)
    peak_gpu_memory: int | None = field(default_factory=peak_gpu_bytes)

    def __getitem__(self, key: str) -> Any:
        if key in self.__dataclass_fields__:
            return getattr(self, key)
        return self.metrics[key]

    def __iter__(self) -> Iterator[str]:
        yield from self.__dataclass_fields__
        yield from self.metrics

    def __len__(self) -> int:
        return len(self.__dataclass_fields__) + len(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def evaluated(self) -> list[str]:
        """One line for each value of the last evaluation, with its interval: `eval_nll 1.2345 [1.1012, 1.3678]`."""
        lines = []
        for name, value in self.metrics.items():
            if name.startswith(("eval_", "eval/")) and name != "eval/seconds":
                bounds = ", ".join(f"{bound:.4f}" for bound in self.intervals.get(name, ()))
                lines.append(f"{name} {value:.4f}" + (f" [{bounds}]" if bounds else ""))
        return lines
