"""What happens while the library trains: metrics to the run folder, evaluation, a clean stop, the live view.

Transformers' callback class is imported when a trainer is built, so the class is made by a function. Callbacks of the
library itself that print or draw bars are removed; ours is the only one that speaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aligntune.core.durable import keeps_window
from aligntune.core.early_stopping import drop_former_best, is_over, protect_best
from aligntune.core.live import Progress
from aligntune.core.measuring import answer_at_share
from aligntune.core.stopping import StopRequest
from aligntune.core.watch import TokenCount, refuse_broken_weights

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


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
            protect_best(trainer, state)  # a resumed run knows it from the evaluations before
            if state.global_step == 0:
                if trainer.config.evaluation.at_start:
                    trainer.evaluate_now(0)
                answer_at_share(trainer, 0, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            trainer.state.step, trainer.state.epoch = state.global_step, state.epoch or 0.0
            progress.show(state.global_step, state.max_steps)
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


__all__ = ["Progress", "StopRequest", "make_callback", "numbers", "quiet"]
