"""Evaluation while a run trains: what follows on the held-out rows' values, and answers to fixed prompts over time.

    metrics.jsonl        eval_reward, eval/gsm8k/accuracy, eval/seconds (what the tasks cost)
    evaluations.jsonl    the same with intervals: a line for the held-out rows (task null), and one for each task
    evaluation/          results and items of the newest evaluation, as `aligntune eval` writes them
    evaluation/before/   those of the starting model, with `evaluation.at_start`
    samples.jsonl        answers, with the step and, for `logging.samples_at`, the share of training

Answers are logged by a `SampleLogger`, at each evaluation or at shares of training; share 1 is the model that is saved.
A resumed run cuts what was written after its checkpoint, and answers no share twice. A run that evaluates nothing
answers prompts of its own at 0, 50 and 100%.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.core.best import BEFORE
from aligntune.core.early_stopping import last_evaluation, note_evaluation
from aligntune.core.held_out import HeldOut, held_out_row, renew
from aligntune.eval.in_training import PREFIX, RunTasks, directions, evaluation_rows, named_values
from aligntune.eval.sample_logger import SHARES, SampleLogger
from aligntune.utils.files import read_lines
from aligntune.utils.logging import get_logger, quiet_libraries
from aligntune.utils.run_folder import EVALUATION, SAMPLES

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

log = get_logger(__name__)


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
    if not RunSamples(trainer).shares:
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
    if 1.0 in RunSamples(trainer).shares:
        answer_prompts(trainer, trainer.state.step, 1.0)
    _tell_cost(trainer, seconds)
    return values


def _tell_cost(trainer: Trainer, seconds: float) -> None:
    took = trainer.state.evaluation_seconds
    if took:
        share = f", {100 * took / seconds:.1f}% of the training loop's {seconds:.0f} s" if seconds > 0 else ""
        trainer._tell([f"evaluation.tasks took {took:.1f} s in this process{share}"])


# ---- answers over time -----------------------------------------------------------------------------------------


class RunSamples(SampleLogger):
    """The answers of a run: to `logging.sample_prompts` or to the first held-out rows, into its `samples.jsonl`.

    Args:
        trainer: the run.
    """

    def __init__(self, trainer: Trainer) -> None:
        sampled, e = trainer.config.logging, trainer.config.evaluation
        self.trainer, self.wanted = trainer, sampled.sample_prompts
        evaluated = trainer._eval_data is not None or bool(e.tasks)
        shares: Sequence[float] = sampled.samples_at or ()
        if sampled.samples_at is None and self.wanted and not evaluated:
            shares = SHARES
        super().__init__(self.wanted, shares=shares)
        if trainer._answered is None:
            trainer._answered = {(row.get("step"), row.get("share")) for row in _stored(trainer)}
        self.answered = trainer._answered

    @property
    def has_prompts(self) -> bool:
        """Whether there is anything to answer."""
        held_out = bool(self.trainer.config.logging.samples) and self.trainer._eval_data is not None
        return self.wanted is not None or held_out

    def answers(self, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
        """As the run answers: decoded as `evaluation` says, and by a classifier with its labels."""
        if self.wanted is not None:
            texts = self.trainer.generate(list(self.wanted))
            return [{"prompt": p, "answer": a} for p, a in zip(self.wanted, texts, strict=True)]
        return self.trainer._samples(self.trainer._eval_rows(), self.trainer.config.logging.samples)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Into the run's folder, and the last one onto the display."""
        self.trainer._run.append_samples(rows)
        if rows:
            last = rows[-1]
            asked = last["prompt"] if isinstance(last["prompt"], str) else str(last["prompt"][-1].get("content"))
            self.trainer.display.sample(last["step"], asked, str(last["answer"]))


def answer_at_share(trainer: Trainer, step: int, total: int) -> None:
    """Answer the prompts if a share of training falls on this step; share 1 is at the end, with the saved model."""
    share = RunSamples(trainer).due(step, total)
    if share is not None and share < 1:
        answer_prompts(trainer, step, share)


def answer_prompts(trainer: Trainer, step: int, share: float | None = None) -> None:
    """Write the answers to the run's fixed prompts, unless those of this share are there."""
    samples = RunSamples(trainer)
    if samples.has_prompts:
        samples.log(trainer.model, trainer.tokenizer, step, share)


def _stored(trainer: Trainer) -> list[dict[str, Any]]:
    path = getattr(trainer._run, "path", None)
    return read_lines(Path(path) / SAMPLES) if isinstance(path, Path) else []
