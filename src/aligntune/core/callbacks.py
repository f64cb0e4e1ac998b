"""What happens while the library trains: metrics to the run folder, evaluation, a clean stop, a progress line.

Transformers' callback class is imported when a trainer is built, so the class is made by a function. Callbacks of the
library itself that print or draw bars are removed; ours is the only one that speaks.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from aligntune.core.durable import keeps_window
from aligntune.core.early_stopping import drop_former_best, is_over, protect_best
from aligntune.core.measuring import answer_at_share
from aligntune.core.stopping import StopRequest
from aligntune.core.watch import TokenCount, refuse_broken_weights

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


class Progress:
    """One line that moves while a run goes on; silent where nobody watches a terminal."""

    def __init__(self, title: str, stream: Any = None) -> None:
        self.title = title
        self.stream = stream or sys.stderr
        self.active = self.stream.isatty()
        self._start = time.monotonic()
        self._first: int | None = None

    def show(self, step: int, total: int, values: dict[str, float]) -> None:
        """Redraw the line: step, time left, and a few values."""
        if not self.active:
            return
        self._first = step - 1 if self._first is None else self._first
        done = max(step - self._first, 1)
        left = (time.monotonic() - self._start) / done * (total - step)
        shown = "  ".join(f"{k.rsplit('/', 1)[-1]} {v:.3g}" for k, v in values.items())
        text = f"{self.title}  {step}/{total}  {_clock(left)} left  {shown}"
        self.stream.write(f"\r\x1b[K{text[:118]}")
        self.stream.flush()

    def close(self) -> None:
        """Leave an empty line behind."""
        if self.active:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


SHOWN = ("loss", "reward", "rewards/accuracies", "eval_nll", "eval_reward", "eval_f1", "eval_f1_macro")


def make_callback(trainer: Trainer, stop: StopRequest, progress: Progress) -> Any:
    """The callback that ties the library's loop to our run: an instance of a `TrainerCallback` subclass."""
    from transformers import TrainerCallback

    class RunCallback(TrainerCallback):  # type: ignore[misc]
        """Writes metrics, evaluates, saves on request, stops on request."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.state.status = "running"
            stop.begin()
            trainer.state.step, trainer.state.epoch = state.global_step, state.epoch or 0.0
            if trainer._hf is not None:
                TokenCount(trainer._hf).restore(state)
                trainer._hf.restore_window(over=state.global_step >= state.max_steps or is_over(trainer))
            if state.global_step == 0:
                if trainer.config.evaluation.at_start:
                    trainer.evaluate_now(0)
                answer_at_share(trainer, 0, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            trainer.state.step, trainer.state.epoch = state.global_step, state.epoch or 0.0
            values = {k: trainer.state.metrics[k] for k in SHOWN if k in trainer.state.metrics}
            progress.show(state.global_step, state.max_steps, values)
            every = trainer.config.evaluation.every
            if every and state.global_step % every == 0 and state.global_step < state.max_steps:
                trainer.evaluate_now(state.global_step)
                if is_over(trainer):
                    control.should_training_stop = True
                if protect_best(trainer, state):
                    control.should_save = True
            answer_at_share(trainer, state.global_step, state.max_steps)
            stopping = _obey(trainer, stop, state, control)
            if trainer._hf is not None:
                TokenCount(trainer._hf).keep(state)
            ended = control.should_training_stop and not stopping
            closes = control.should_save and trainer._hf is not None and not keeps_window(trainer._hf)
            if closes or ended or state.global_step >= state.max_steps:
                # The end closes the window of steps that one line of the log averages, so that no step is left out. A
                # checkpoint keeps an open window (`core.durable`), or closes it where the library does not show it.
                control.should_log = True
            if control.should_save and kwargs.get("model") is not None:
                refuse_broken_weights(kwargs["model"], state.global_step)
            return control

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> Any:
            if logs and state.is_world_process_zero and "train_runtime" not in logs:
                trainer.record(state.global_step, dict(logs))
            return control

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.state.checkpoint_path = f"{args.output_dir}/checkpoint-{state.global_step}"
            drop_former_best(trainer)
            trainer.flush()
            stop.granted()

    return RunCallback()


def _obey(trainer: Trainer, stop: StopRequest, state: Any, control: Any) -> bool:
    """Save or stop after a step as the run was asked to; whether it stops. Both wait for a step to go on from."""
    stop.after_step()
    hf = trainer._hf
    stops, saves = stop.agree(hf.accelerator) if hf is not None else (bool(stop), stop.wants_save())
    if not (stops or saves) or not trainer.config.algorithm.resumable(trainer.config, state.global_step):
        return False
    control.should_save = True
    if stops:
        control.should_training_stop = True
    return stops


def quiet(hf_trainer: Any) -> None:
    """Remove the library's own printing callbacks."""
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        hf_trainer.remove_callback(callback)


def numbers(logs: dict[str, Any]) -> dict[str, float]:
    """The numeric entries of a log row, as floats."""
    return {k: float(v) for k, v in logs.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
