"""Asking a run to stop or to save: signals, a time limit, a file; and what all processes of a run agree on.

| asked by | what happens |
|---|---|
| Ctrl-C, SIGTERM | the run stops with a checkpoint, after the first step that it can go on from |
| the same again, or `train.stop_grace` seconds after SIGTERM | it stops at once, with the checkpoints that are there |
| `train.time_limit` | as Ctrl-C, so early that one more step and a checkpoint would fit in |
| SIGUSR1, or a file `SAVE` in the run's folder | a checkpoint, and the run goes on; the file is removed |

A checkpoint that is being written is finished first, whatever comes (a third signal cuts it short, which leaves the
older ones whole). Time is measured by a clock that only goes forward, so setting the system's clock changes nothing.

>>> stop = StopRequest(time_limit=seconds("3h"))
>>> with stop.listening():
...     hf.train()

It does not stop inside a step, except at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.core.config.durations import seconds

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

FILE = "SAVE"
"""Name of the file in a run's folder that asks for a checkpoint."""


class StopRequest:
    """What one run was asked for.

    Args:
        time_limit: seconds from `began`; None sets none.
        began: reading of `time.monotonic` from which the limit counts; None takes now.
        grace: seconds from SIGTERM to the stop at once; None waits for the step.
        folder: the run's folder, in which a file `SAVE` is looked for.

    Attributes:
        reason: why it stops, as a sentence; empty while it does not.
    """

    def __init__(
        self,
        *,
        time_limit: float | None = None,
        began: float | None = None,
        grace: float | None = None,
        folder: Path | None = None,
    ) -> None:
        self.signal: int | None = None
        self.reason = ""
        self.grace, self.folder = grace, folder
        now = time.monotonic()
        self._deadline = None if time_limit is None else (now if began is None else began) + time_limit
        self._wants_save, self._saving, self._at_once = False, False, 0
        self._last, self._slowest, self._save_seconds = now, 0.0, 0.0
        self._timer: threading.Timer | None = None

    def __bool__(self) -> bool:
        return bool(self.reason)

    # ---- signals -------------------------------------------------------------------------------------------

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch the signals inside the block (in the main thread; elsewhere Python cannot)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        wanted: dict[int, Any] = dict.fromkeys((signal.SIGINT, signal.SIGTERM), self._stop)
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            wanted[signal.SIGUSR1] = self._save
        before = {number: signal.getsignal(number) for number in wanted}
        for number, handler in wanted.items():
            signal.signal(number, handler)
        try:
            yield self
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        if self.signal is None:
            self.signal = number
            self.reason = f"{signal.Signals(number).name} was received"
            _tell("stopping after this step; press Ctrl-C again to stop at once")
            if self.grace is not None and number == signal.SIGTERM:
                self._timer = threading.Timer(self.grace, os.kill, (os.getpid(), number))
                self._timer.daemon = True
                self._timer.start()
            return
        self._at_once += 1
        if self._saving and self._at_once == 1:
            _tell("stopping when the checkpoint is written; press Ctrl-C again to leave it")
            return
        raise KeyboardInterrupt

    def _save(self, number: int, frame: Any) -> None:
        self._wants_save = True

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A block that a request to stop at once waits for."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False
        if self._at_once:
            raise KeyboardInterrupt

    # ---- steps ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The first step begins now: loading was no step."""
        self._last = time.monotonic()

    def saved(self, took: float) -> None:
        """A checkpoint was written in so many seconds."""
        self._save_seconds = max(self._save_seconds, took)

    def after_step(self) -> None:
        """Called after each optimizer step: is there time for one more?"""
        now = time.monotonic()
        self._slowest, self._last = max(self._slowest, now - self._last), now
        if self._deadline is not None and not self.reason:
            left = self._deadline - now
            if left < self._slowest + self._save_seconds:
                self.reason = "train.time_limit is reached"
                _tell("stopping after this step, as train.time_limit is reached")

    def wants_save(self) -> bool:
        """Whether a checkpoint was asked for; the file stays until `granted`."""
        return self._wants_save or (self.folder is not None and (self.folder / FILE).exists())

    def granted(self) -> None:
        """The checkpoint that was asked for is written."""
        self._wants_save = False
        if self.folder is not None:
            (self.folder / FILE).unlink(missing_ok=True)

    def agree(self, accelerator: Any) -> tuple[bool, bool]:
        """Whether any process of the run was asked to (stop, save): all of them must do the same."""
        stop, save = bool(self), self.wants_save()
        if accelerator.num_processes > 1:
            import torch

            flags = torch.tensor([float(stop), float(save)], device=accelerator.device)
            stop, save = (value > 0 for value in accelerator.reduce(flags, reduction="sum").tolist())
            if stop and not self.reason:
                self.reason = "another process of the run was asked to stop"
        return stop, save


def request_of(trainer: Trainer) -> StopRequest:
    """The request of a run, by its `train` section."""
    train = trainer.config.train
    return StopRequest(
        time_limit=None if train.time_limit is None else seconds(train.time_limit),
        began=trainer._began,
        grace=train.stop_grace,
        folder=None if trainer._run is None else Path(trainer._run.path),
    )


def _tell(sentence: str) -> None:
    print(f"\n{sentence}", file=sys.stderr, flush=True)
