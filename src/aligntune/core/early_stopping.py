"""Early stopping: end a run whose held-out value has stopped improving, and keep the weights of its best evaluation.

The rule (Prechelt 1998, "Early Stopping - But When?", the UP criterion over successive evaluations): stop when
`train.early_stopping_patience` evaluations in a row did not beat the best one. The value is the first of
`core.evaluation.PRIMARY` that the run measures. A value that is not finite never counts as better.

    evaluations   0.60  0.71  0.70  0.71          patience 2: stops after the fourth, keeps the weights of the second

The trained weights of each new best are written to `best/step-N.safetensors` in the run folder, and taken back at the
end; the folder is removed then. A resumed run counts on from `metrics.jsonl`. It stops no run without evaluations, and
says nothing about which checkpoint is best (a checkpoint is for going on).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.core.evaluation import PRIMARY, improves
from aligntune.errors import ConfigurationError, TrainingError

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

FOLDER = "best"


def note_evaluation(trainer: Trainer, step: int, values: dict[str, float]) -> None:
    """Remember an evaluation: as the best one, with its weights where the run stops early, or as one without gain.

    Raises:
        ConfigurationError: the run stops early, and the evaluation has no value that says which is better.
    """
    state, patience = trainer.state, trainer.config.train.early_stopping_patience
    if patience and not any(name in values for name, _ in PRIMARY):
        raise ConfigurationError(
            f"train.early_stopping_patience: the evaluation of {trainer.config.algorithm.key} has no value to go by "
            f"(it measures {', '.join(sorted(values)[:6])})",
            hint="remove train.early_stopping_patience",
        )
    _count(state, step, values)
    if patience and state.best_step == step:
        _save(trainer, step)


def _count(state: Any, step: int, values: dict[str, float]) -> None:
    state.evaluated_step = step
    best = improves(values, state.best_metric)
    if best is None:
        state.without_gain += 1
    else:
        state.best_metric, state.best_step, state.without_gain = best, step, 0
        state.best_values = dict(values)


def is_over(trainer: Trainer) -> bool:
    """Whether the run has seen `train.early_stopping_patience` evaluations without gain."""
    patience = trainer.config.train.early_stopping_patience
    return patience is not None and trainer.state.without_gain >= patience


def replay(trainer: Trainer, rows: list[dict[str, Any]]) -> None:
    """Count again what a resumed run had measured before.

    Args:
        trainer: the run.
        rows: its `metrics.jsonl`, cut at the checkpoint.
    """
    for row in rows:
        values = {k: v for k, v in row.items() if k.startswith("eval_") and isinstance(v, (int, float))}
        if values:
            _count(trainer.state, int(row["step"]), values)


def last_evaluation(trainer: Trainer) -> dict[str, float]:
    """Evaluate at the end of training; where the run stops early, take the best weights back and give their values.

    Raises:
        TrainingError: the best weights are gone.
    """
    state = trainer.state
    if trainer.config.train.early_stopping_patience is None:
        return trainer.evaluate_now(state.step)
    if state.evaluated_step != state.step:
        trainer.evaluate_now(state.step)
    folder = _folder(trainer)
    if state.best_step is not None and state.best_step != state.step:
        _restore(trainer, folder / f"step-{state.best_step}.safetensors")
        state.metrics.update(state.best_values)
        trainer._tell(
            [
                f"early stopping: the best evaluation was that of step {state.best_step} of {state.step}; the model "
                "has the weights of that step"
            ]
        )
    shutil.rmtree(folder, ignore_errors=True)
    return dict(state.best_values)


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.config.output_dir).expanduser() / FOLDER


def _trained(trainer: Trainer) -> dict[str, Any]:
    hf = trainer._hf
    model = hf.accelerator.unwrap_model(hf.model) if hf is not None else trainer.model
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _save(trainer: Trainer, step: int) -> None:
    if trainer._hf is not None and not trainer._hf.is_world_process_zero():
        return
    from safetensors.torch import save_file

    folder = _folder(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.detach().cpu().contiguous() for name, weight in _trained(trainer).items()},
        folder / f"step-{step}.safetensors",
    )
    # A run that goes on from the newest checkpoint may still need the best weights of before that checkpoint.
    at = trainer.state.checkpoint_path
    checkpoint = int(at.rpartition("-")[2]) if at else 0
    steps = sorted(int(f.stem.partition("-")[2]) for f in folder.glob("step-*.safetensors"))
    kept = {step, max((s for s in steps if s <= checkpoint), default=step)}
    for old in set(steps) - kept:
        (folder / f"step-{old}.safetensors").unlink()


def _restore(trainer: Trainer, file: Path) -> None:
    import torch
    from safetensors.torch import load_file

    if not file.exists():
        raise TrainingError(
            f"the weights of the best evaluation are gone ({file})",
            hint=f"the newest weights are in {trainer.state.checkpoint_path or 'no checkpoint'}; train again without "
            "touching the run's folder",
        )
    stored = load_file(file)
    with torch.no_grad():
        for name, weight in _trained(trainer).items():
            weight.copy_(stored[name].to(weight.device, weight.dtype))
