"""Evaluation while a run trains: what follows on the held-out rows' values, and answers to fixed prompts over time.

    metrics.jsonl        eval_reward, eval/gsm8k/accuracy, eval/seconds (what the tasks cost)
    evaluations.jsonl    the same with intervals: a line for the held-out rows (task null), and one for each task
    evaluation/          results and items of the newest evaluation, as `aligntune eval` writes them
    evaluation/before/   those of the starting model, with `evaluation.at_start`
    samples.jsonl        answers, with the step and, for `logging.samples_at`, the share of training

A share of training is the step `round(share x all steps)`; 1 is the model that is saved. A resumed run cuts what was
written after its checkpoint, and answers no step twice. Two shares that fall on one step are one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.core.best import BEFORE
from aligntune.core.early_stopping import last_evaluation, note_evaluation
from aligntune.core.held_out import HeldOut, held_out_row, renew
from aligntune.eval.in_training import PREFIX, RunTasks, directions, evaluation_rows, named_values
from aligntune.utils.files import read_lines
from aligntune.utils.logging import get_logger, quiet_libraries
from aligntune.utils.run_folder import EVALUATION, SAMPLES

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

log = get_logger(__name__)
UNEVALUATED_SHARES = (0.0, 0.5, 1.0)
"""When prompts of one's own are answered in a run that evaluates nothing."""


def prepare_tasks(trainer: Trainer) -> RunTasks | None:
    """The run's tasks with their data read; None without tasks.

    Raises:
        ConfigurationError: a task is wrong, or the run is spread over several processes.
        ValidationError: data cannot be used.
    """
    if not trainer.config.evaluation.tasks:
        return None
    tasks = RunTasks(trainer.config, processes=int(os.environ.get("WORLD_SIZE", "1")))
    with quiet_libraries():
        trainer._tell(tasks.prepare())
    return tasks


def finish_evaluation(trainer: Trainer, step: int, values: dict[str, float]) -> dict[str, float]:
    """Measure the tasks, log everything, remember the best, and answer the held-out prompts.

    Args:
        trainer: the run.
        step: optimizer steps done.
        values: of the held-out rows; empty where there are none.

    Returns:
        All values, by the names in `metrics.jsonl`.
    """
    if isinstance(values, HeldOut) and values:
        _keep(trainer, [held_out_row(values, step, trainer.config.algorithm.data.value)])
    if trainer._tasks is not None:
        values = {**values, **_measure_tasks(trainer, trainer._tasks, step)}
    trainer.record(step, values)
    note_evaluation(trainer, step, values)
    if not _shares(trainer):
        answer_prompts(trainer, step)
    return values


def _keep(trainer: Trainer, rows: list[dict[str, Any]]) -> None:
    """Store values with their intervals, and remember those."""
    trainer._run.append_evaluations(rows)
    renew(trainer.state.intervals, rows, PREFIX)


def _measure_tasks(trainer: Trainer, tasks: RunTasks, step: int) -> dict[str, float]:
    name = str(trainer.config.output_dir) if step else ""
    with quiet_libraries():
        result = tasks.measure(trainer.model, trainer.tokenizer, name)
    rows = evaluation_rows(result, step)
    trainer._directions.update(directions(rows))
    _keep(trainer, rows)
    folder = Path(trainer._run.path) / EVALUATION
    result.save(folder)
    if step == 0:
        result.save(folder / BEFORE)
    trainer.state.evaluation_seconds += result.seconds
    values = named_values(result)
    shown = ", ".join(f"{task.name} {task.headline}" for task in result.tasks.values())
    log.info("step %d: %s; took %.1f s", step, shown, result.seconds)
    return {**values, "eval/seconds": round(result.seconds, 3)}


def evaluate_last(trainer: Trainer, seconds: float) -> dict[str, float]:
    """Evaluate what the loop has made, answer the prompts with it, and note what the tasks took of the run's time.

    Args:
        trainer: the run.
        seconds: of the whole loop.

    Returns:
        The values of the model that will be saved; empty where nothing is measured.
    """
    measured = trainer._eval_data is not None or trainer._tasks is not None
    values = last_evaluation(trainer) if measured else {}
    _answer_at_end(trainer, trainer.state.step)
    _tell_cost(trainer, seconds)
    return values


def _tell_cost(trainer: Trainer, seconds: float) -> None:
    took = trainer.state.evaluation_seconds
    if took:
        share = f", {100 * took / seconds:.1f}% of the training loop's {seconds:.0f} s" if seconds > 0 else ""
        trainer._tell([f"evaluation.tasks took {took:.1f} s in this process{share}"])


# ---- answers over time -----------------------------------------------------------------------------------------


def _shares(trainer: Trainer) -> list[float]:
    """Shares of training at which prompts are answered; empty where they are answered at each evaluation."""
    sampled, e = trainer.config.logging, trainer.config.evaluation
    if sampled.samples_at is not None:
        return sorted(set(sampled.samples_at))
    evaluated = trainer._eval_data is not None or bool(e.tasks)
    return list(UNEVALUATED_SHARES) if sampled.sample_prompts and not evaluated else []


def answer_at_share(trainer: Trainer, step: int, total: int) -> None:
    """Answer the prompts if a share of training falls on this step; share 1 is at the end."""
    due = [share for share in _shares(trainer) if share < 1 and round(share * total) == step]
    if due:
        answer_prompts(trainer, step, due[-1])


def _answer_at_end(trainer: Trainer, step: int) -> None:
    """Answer the prompts with the model that will be saved, where share 1 is asked for."""
    if 1.0 in _shares(trainer):
        answer_prompts(trainer, step, 1.0)


def answer_prompts(trainer: Trainer, step: int, share: float | None = None) -> None:
    """Write the answers to the run's fixed prompts, unless this step's are there."""
    wanted, count = trainer.config.logging.sample_prompts, trainer.config.logging.samples
    if wanted is None and (not count or trainer._eval_data is None):
        return
    if trainer._answered is None:
        trainer._answered = {(row.get("step"), row.get("share")) for row in _stored(trainer)}
    if share is not None and (step, share) in trainer._answered:
        return
    if wanted is not None:
        answers = [{"prompt": p, "answer": a} for p, a in zip(wanted, trainer.generate(list(wanted)), strict=True)]
    else:
        answers = trainer._samples(trainer._eval_rows(), count)
    mark: dict[str, Any] = {} if share is None else {"share": share}
    trainer._run.append_samples([{"step": step, **mark, **row} for row in answers])
    if answers:
        last = answers[-1]
        asked = last["prompt"] if isinstance(last["prompt"], str) else str(last["prompt"][-1].get("content"))
        trainer.display.sample(step, asked, str(last["answer"]))
    trainer._answered.add((step, share))


def _stored(trainer: Trainer) -> list[dict[str, Any]]:
    path = getattr(trainer._run, "path", None)
    return read_lines(Path(path) / SAMPLES) if isinstance(path, Path) else []
