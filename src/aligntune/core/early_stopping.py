"""Early stopping: end a run whose held-out value has stopped improving, and keep the weights of its best evaluation.

The rule (Prechelt 1998, "Early Stopping - But When?", the UP criterion over successive evaluations): stop when
`train.early_stopping_patience` evaluations in a row did not beat the best one. Which value decides says `core.best`. A
value that is not finite never counts as better.

    evaluations   0.60  0.71  0.70  0.71          patience 2: stops after the fourth, keeps the weights of the second

The trained weights of each new best are written to `best/step-N.safetensors` in the run folder, and taken back at the
end; the folder is removed when the model is saved. `train.keep_best: model` does the same in a run that is not stopped
early, and `keep_best: checkpoint` writes a checkpoint at each new best evaluation, keeps the newest of them whatever
`train.save_total_limit` says, and removes the one before. A resumed run counts on from `metrics.jsonl`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.core.best import count, has_value, held_out, keep_items, stored_evaluations
from aligntune.core.held_out import renew
from aligntune.errors import ConfigurationError, TrainingError
from aligntune.eval.in_training import PREFIX
from aligntune.utils.checkpoints import BEST
from aligntune.utils.files import sync_file, sync_folder
from aligntune.utils.run_folder import EVALUATION

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

UNMEASURED = ("step", "epoch", "time")


def note_evaluation(trainer: Trainer, step: int, values: dict[str, float]) -> None:
    """Remember an evaluation: as the best one, with its weights where the run stops early, or as one without gain.

    Raises:
        ConfigurationError: the run stops early, and the evaluation has no value that says which is better.
    """
    patience = trainer.config.train.early_stopping_patience
    if patience and not has_value(trainer, values):
        raise ConfigurationError(
            f"train.early_stopping_patience: the evaluation of {trainer.config.algorithm.key} has no value to go by "
            f"(it measures {', '.join(sorted(values)[:6])})",
            hint="remove train.early_stopping_patience, or name a value in train.best_metric",
        )
    count(trainer, step, values)
    if _takes_best_back(trainer) and trainer.state.best_step == step:
        _save(trainer, step)


def _takes_best_back(trainer: Trainer) -> bool:
    """Whether the run ends with the weights of its best evaluation."""
    train = trainer.config.train
    return train.early_stopping_patience is not None or train.keep_best == "model"


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
    known, steps = stored_evaluations(trainer._run.path)
    trainer._directions.update(known)
    for row in rows:
        unmeasured = UNMEASURED if "loss" not in row else ("step", "time")  # the library's own lines know the epoch
        found = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and k not in unmeasured}
        trainer.state.metrics.update(found)
        values = {k: v for k, v in found.items() if held_out(k)}
        if values:
            renew(trainer.state.intervals, steps.get(int(row["step"]), []), PREFIX)
            count(trainer, int(row["step"]), values)
    kept = best_checkpoint(trainer)
    trainer.state.best_checkpoint = str(kept) if kept is not None and kept.is_dir() else None


def last_evaluation(trainer: Trainer) -> dict[str, float]:
    """Evaluate at the end of training, where it was not just done; take the best weights back where the run ends with
    them, and give their values.

    Raises:
        TrainingError: the best weights are gone.
    """
    state = trainer.state
    if not _takes_best_back(trainer):
        return trainer.evaluate_now(state.step)
    if state.evaluated_step != state.step:
        trainer.evaluate_now(state.step)
    folder = _folder(trainer)
    if state.best_step is not None and state.best_step != state.step:
        _restore(trainer, folder / f"step-{state.best_step}.safetensors")
        keep_items(folder / f"step-{state.best_step}", Path(trainer._run.path) / EVALUATION)
        state.metrics.update(state.best_values)
        state.intervals.update(state.best_intervals)
        state.best_restored = True
        trainer._tell(
            [
                f"the best evaluation ({state.best_name} {state.best_metric:.4g}) was that of step {state.best_step} "
                f"of {state.step}; the model has the weights of that step"
            ]
        )
    return dict(state.best_values)


def drop_best(trainer: Trainer) -> None:
    """Remove the weights of the best evaluation, when the model that has them is saved."""
    shutil.rmtree(_folder(trainer), ignore_errors=True)


def best_checkpoint(trainer: Trainer) -> Path | None:
    """Where the checkpoint of the best evaluation is or would be; None before one."""
    step = trainer.state.best_step
    return None if step is None else Path(trainer.config.output_dir).expanduser().absolute() / f"checkpoint-{step}"


def protect_best(trainer: Trainer, library_state: Any) -> bool:
    """Tell the rotation (`core.durable`) which checkpoint it must leave; whether to write one at this step.

    Args:
        trainer: the run, at a step whose evaluation is done.
        library_state: Transformers' `TrainerState`.
    """
    state = trainer.state
    if trainer.config.train.keep_best != "checkpoint" or state.best_step is None:
        return False
    # Not its `best_model_checkpoint` too: the library would remove the last checkpoint for it at the end.
    library_state.best_global_step = state.best_step
    return bool(state.best_step == library_state.global_step)


def drop_former_best(trainer: Trainer) -> None:
    """After a checkpoint is written: remove the former best one, where it was written for nothing else."""
    state, every = trainer.state, trainer.config.train.save_steps
    now = best_checkpoint(trainer)
    if trainer.config.train.keep_best != "checkpoint" or now is None or not now.is_dir():
        return
    former = state.best_checkpoint
    if former is not None and former != str(now):
        step = int(former.rpartition("-")[2])
        if not every or step % every:
            shutil.rmtree(former, ignore_errors=True)
    state.best_checkpoint = str(now)


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.config.output_dir).expanduser() / BEST


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
    made = folder / f".step-{step}.safetensors"
    save_file({name: weight.detach().cpu().contiguous() for name, weight in _trained(trainer).items()}, made)
    sync_file(made)  # a checkpoint that follows counts on it
    os.replace(made, folder / f"step-{step}.safetensors")
    sync_folder(folder)
    keep_items(Path(trainer._run.path) / EVALUATION, folder / f"step-{step}")
    # A run that goes on from the newest checkpoint may still need the best weights of before that checkpoint.
    at = trainer.state.checkpoint_path
    checkpoint = int(at.rpartition("-")[2]) if at else 0
    steps = sorted(int(f.stem.partition("-")[2]) for f in folder.glob("step-*.safetensors"))
    kept = {step, max((s for s in steps if s <= checkpoint), default=step)}
    for old in set(steps) - kept:
        (folder / f"step-{old}.safetensors").unlink()
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)


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
