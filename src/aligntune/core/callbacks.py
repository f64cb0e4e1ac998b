"""What happens while the library trains: metrics to the run folder, evaluation, a clean stop, a progress line.

Transformers' callback class is imported when a trainer is built, so the class is made by a function. Callbacks of the
library itself that print or draw bars are removed; ours is the only one that speaks.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aligntune.core.early_stopping import is_over
from aligntune.core.watch import TokenCount, refuse_broken_weights

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


class StopRequest:
    """Set by Ctrl-C or SIGTERM; the trainer stops after the first step that a run can go on from. A second one stops at
    once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch the signals inside the block (in the main thread; elsewhere Python cannot)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def handle(number: int, frame: Any) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = number
            print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

        for number in before:
            signal.signal(number, handle)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


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
            trainer.state.step, trainer.state.epoch = state.global_step, state.epoch or 0.0
            if trainer._hf is not None:
                TokenCount(trainer._hf).restore(state)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            trainer.state.step, trainer.state.epoch = state.global_step, state.epoch or 0.0
            values = {k: trainer.state.metrics[k] for k in SHOWN if k in trainer.state.metrics}
            progress.show(state.global_step, state.max_steps, values)
            every = trainer.config.evaluation.every
            if every and state.global_step % every == 0 and state.global_step < state.max_steps:
                trainer.evaluate_now(state.global_step)
                if is_over(trainer):
                    control.should_training_stop = True
            if stop and trainer.config.algorithm.resumable(trainer.config, state.global_step):
                control.should_save = True
                control.should_training_stop = True
            if trainer._hf is not None:
                TokenCount(trainer._hf).keep(state)
            if control.should_save or control.should_training_stop or state.global_step >= state.max_steps:
                # A checkpoint closes the window of steps that one line of the log averages, and so does the end:
                # what the resumed run logs is then what the straight one does, and no step is left out.
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
            trainer.flush()

    return RunCallback()


def quiet(hf_trainer: Any) -> None:
    """Remove the library's own printing callbacks."""
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        hf_trainer.remove_callback(callback)


def numbers(logs: dict[str, Any]) -> dict[str, float]:
    """The numeric entries of a log row, as floats."""
    return {k: float(v) for k, v in logs.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
