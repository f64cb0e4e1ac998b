"""What follows a run while the library trains it: the order of its data, and its health.

`follow(hf, trainer)` puts one callback behind the run's own. It writes `order.jsonl`, hands each row of the log to the
health monitor, and does what `health.action` says.

>>> follow(hf, trainer)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aligntune.core.order import DataOrder

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


class Follower:
    """Looks on while one library loop runs.

    Args:
        hf: the library's trainer.
        trainer: the run.
    """

    def __init__(self, hf: Any, trainer: Trainer) -> None:
        self.hf, self.trainer = hf, trainer
        self.order = DataOrder(trainer)

    def batch(self, inputs: Any) -> None:
        """Take the inputs of one training step."""
        if self.hf.state.is_world_process_zero:
            self.order.see(inputs)

    def mark(self) -> None:
        """Write down how far the data were seen."""
        if self.hf.state.is_world_process_zero:
            self.order.write()


def follow(hf: Any, trainer: Trainer) -> Follower:
    """Let a follower look on at the loop of `hf`."""
    from transformers import TrainerCallback

    follower = Follower(hf, trainer)

    class FollowCallback(TrainerCallback):  # type: ignore[misc]
        """Hands the loop's events to the follower."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if control.should_save:
                follower.mark()
            return control

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            follower.mark()
            return control

    hf.add_callback(FollowCallback())
    return follower
