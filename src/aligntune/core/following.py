"""What follows a run while the library trains it: the order of its data, its health, its report, logging services.

`follow(hf, trainer)` puts one callback behind the run's own. It writes `order.jsonl`, hands each row of the log to the
health monitor, writes what that finds to `events.jsonl`, tells it once, and does what `health.action` says. The report
is drawn again from time to time (`core.refreshing`), and the services of `logging.report_to` are opened.

>>> follow(hf, trainer)

A resumed run takes the monitor's state from the rows that its checkpoint keeps, so nothing is told twice. It watches
the first process of several.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from aligntune.core.order import DataOrder
from aligntune.core.recording import warn
from aligntune.core.refreshing import LiveReport
from aligntune.core.services import attach_services
from aligntune.core.timing import time_saving
from aligntune.errors import TrainingError
from aligntune.utils.files import append_line, read_lines
from aligntune.utils.run_folder import EVENTS, METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aligntune.core.trainer import Trainer
    from aligntune.utils.health import Event, HealthMonitor


def monitor_for(trainer: Trainer) -> HealthMonitor:
    """The health monitor of a run's configuration and rewards, before its first row."""
    from aligntune.utils.health import HealthMonitor

    config: Any = trainer.config
    sampled = config.algorithm.uses_rewards
    return HealthMonitor(
        config.health,
        sampled=sampled,
        best_reward=_best_reward(trainer.rewards) if sampled else None,
        room=config.generation.max_completion_length if sampled else None,
        grouped=config.algorithm.group_size != 1,
    )


def _best_reward(rewards: Any) -> float | None:
    """The highest total that the rewards can give; None where their declared ranges leave it open."""
    best = math.inf if rewards is None else float(rewards.bounds[1])
    return best if math.isfinite(best) else None


class Follower:
    """Looks on while one library loop runs.

    Args:
        hf: the library's trainer.
        trainer: the run, whose folder is claimed.
    """

    def __init__(self, hf: Any, trainer: Trainer) -> None:
        from aligntune.utils.health import DiagnosticsCollector

        self.hf, self.trainer = hf, trainer
        self.order = DataOrder(trainer)
        self.monitor = monitor_for(trainer)
        self.collector = DiagnosticsCollector(trainer._run.path)
        self.cause: Event | None = None
        self.stopped = False
        rows = read_lines(trainer._run.path / METRICS)
        own = getattr(trainer, "health_rows", None)  # of a run in rounds: those of this round
        self.monitor.replay(rows if own is None else own(rows))
        self.monitor.note(read_lines(trainer._run.path / EVENTS))

    def batch(self, inputs: Any) -> None:
        """Take the inputs of one training step."""
        if self.hf.state.is_world_process_zero:
            self.order.see(inputs)

    def mark(self) -> None:
        """Write down how far the data were seen."""
        if self.hf.state.is_world_process_zero:
            self.order.write()

    def row(self, row: Mapping[str, Any]) -> None:
        """Take one row of the log; what is wrong from now on is told, and its action waits for the step's end."""
        health = self.trainer.config.health
        if not health.enabled or not self.trainer._run.leads:
            return
        for event in self.monitor.observe(int(row["step"]), {**row, **self.collector.due()}):
            append_line(self.trainer._run.path / EVENTS, {**event.to_dict(), "action": health.action})
            warn(self.trainer, str(event))
            self.trainer.display.event(str(event))
            if health.action != "warn" and self.cause is None:
                self.cause = event

    def act(self, state: Any, control: Any) -> None:
        """Ask the library for what `health.action` says, at a step that a run can go on from."""
        step = state.global_step
        if self.cause is None or not self.trainer.config.algorithm.resumable(self.trainer.config, step):
            return
        if step >= state.max_steps:  # it ends here anyway
            return
        self.mark()
        control.should_save = True
        if self.trainer.config.health.action == "stop":
            control.should_training_stop = self.stopped = True
        else:
            self.cause = None

    def end(self) -> None:
        """End a run that its health has stopped.

        Raises:
            TrainingError: it was stopped.
        """
        if self.stopped and self.cause is not None:
            raise TrainingError(
                f"stopped at step {self.trainer.state.step} because `health.action` is stop: {self.cause.message} "
                f"({self.cause.rule})",
                hint=f"{self.cause.advice}; a checkpoint is written, and --resume goes on from it",
                context=self.cause.to_dict(),
            )


def follow(hf: Any, trainer: Trainer) -> Follower:
    """Let a follower look on at the loop of `hf`."""
    from transformers import TrainerCallback

    follower, report = Follower(hf, trainer), LiveReport(trainer)
    time_saving(trainer, hf)
    attach_services(hf, trainer)
    trainer._run.observer = follower.row

    class FollowCallback(TrainerCallback):  # type: ignore[misc]
        """Hands the loop's events to the follower."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer._run.update_manifest({"total_steps": state.max_steps})

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            follower.act(state, control)
            if control.should_save:
                follower.mark()
            return control

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            follower.mark()
            follower.act(state, control)
            report.refresh()
            return control

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            follower.end()
            return control

    hf.add_callback(FollowCallback())
    return follower
