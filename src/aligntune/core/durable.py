"""A library trainer whose checkpoints are whole: written aside, sealed, renamed, with what the library leaves out.

    trainer_class = durable(trl.SFTTrainer)     # or Unsloth's, or a layer over either
    hf.owner = trainer

The library writes its checkpoint as ever, into a folder that is no checkpoint's (`_get_output_dir`), and
`CheckpointManager` seals it and puts it in its place. Transformers' own rotation then sees one checkpoint and removes
none; ours follows the steps and not the clock.

Beside the library's files lies `window-R.json` of each process R: the loss and the metrics that were summed since the
last line of the log, and the sum of all losses. So a resumed run logs what the run that was never stopped logs, to the
last bit, wherever the checkpoint falls between two lines.

    straight    steps 1-4 -> line at 4    steps 5-8 -> line at 8
    stopped     steps 1-4 -> line at 4    steps 5, 6, checkpoint | 7, 8 -> the same line at 8

Source: `Trainer._save_checkpoint`, `_inner_training_loop` of Transformers 5.17 and `_metrics` of TRL 1.14.2. What was
sampled and not used yet is not stored: policy optimisation is only saved where nothing is left over (`resumable`).
"""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.errors import TrainingError
from aligntune.utils.checkpoints import CheckpointManager

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

WINDOW = "window-{}.json"
LINES = "lines.json"
"""Lines in each of the run's files when the checkpoint was written."""
SUMS = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")
"""What the library's loop sums between two lines of the log."""


def window_of(hf: Any) -> dict[str, Any]:
    """What one process has summed since the last line of the log, as plain values that JSON keeps to the last bit."""
    metrics = getattr(hf, "_metrics", {}).get("train", {})
    return {
        "loss": float(hf._tr_loss),
        "total": float(hf._total_loss_scalar),
        "logged_step": int(hf._globalstep_last_logged),
        "metrics": {name: [float(v) for v in values] for name, values in metrics.items()},
    }


def take_window(hf: Any, window: dict[str, Any]) -> None:
    """Go on from what `window_of` gave; called when the loop has set its sums to zero."""
    hf._tr_loss.fill_(window["loss"])
    hf._total_loss_scalar = window["total"]
    hf._globalstep_last_logged = window["logged_step"]
    if window["metrics"]:
        hf._metrics["train"].clear()
        for name, values in window["metrics"].items():
            hf._metrics["train"][name].extend(values)


def keeps_window(hf: Any) -> bool:
    """Whether the loop shows its sums; where it does not, a checkpoint has to close the line of the log."""
    return all(hasattr(hf, name) for name in SUMS)


@cache
def know_numbered_cpus() -> None:
    """Let torch load tensors onto `cpu:0`, the device of a distributed run on the CPU, which it does not know."""
    import torch

    def place(stored: Any, location: str) -> Any:
        return stored if location.startswith("cpu:") else None

    torch.serialization.register_package(5, lambda stored: None, place)


@cache
def durable(base: type) -> type:
    """`base`, a trainer class of Transformers' line, with the checkpoints of this module."""

    class Durable(base):  # type: ignore[misc]
        """See `durable`; `owner` is set after construction."""

        owner: Trainer
        _staging: Path | None = None
        _resumed_from: Path | None = None
        _over = False

        def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
            self._resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
            return super().train(resume_from_checkpoint, *args, **kwargs)

        def restore_window(self, *, over: bool) -> None:
            """Called when training begins; `over` says that the checkpoint is of the last step."""
            self._over = over
            if self._resumed_from is None or not keeps_window(self):
                return
            file = self._resumed_from / WINDOW.format(self.args.process_index)
            written = len(list(self._resumed_from.glob(WINDOW.format("*"))))
            if written != self.args.world_size:
                raise TrainingError(
                    f"{self._resumed_from} was written by {written} processes, and this run has {self.args.world_size}",
                    hint="start as many processes as the run began with",
                )
            take_window(self, json.loads(file.read_text(encoding="utf-8")))

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            # The library takes one step more from a checkpoint of the last step, unless there are no batches.
            return ([], None) if self._over else super().get_batch_samples(*args, **kwargs)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            target = self.accelerator.unwrap_model(self.model if model is None else model)
            if len(getattr(target, "peft_config", {})) > 1:
                from aligntune.core.rl.adapters import take_adapter  # its package imports the trainer, as we do

                # The library loads the folders of further adapters (the reference `ref`) then, and not the trained one.
                take_adapter(target, Path(resume_from_checkpoint))

        def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
            if self.args.device.type == "cpu":
                know_numbered_cpus()
            super()._load_optimizer_and_scheduler(checkpoint)

        def _get_output_dir(self, trial: Any) -> str:
            return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            owner, step, started = self.owner, int(self.state.global_step), time.monotonic()
            manager = CheckpointManager(super()._get_output_dir(trial), self.args.save_total_limit)
            writes = self.args.should_save
            with owner.stop.saving():
                owner.flush()  # a row that stands in no file yet must not be older than the checkpoint
                if writes:
                    folder = manager.begin(step)
                self.accelerator.wait_for_everyone()
                folder = manager.staging / f"checkpoint-{step}"
                best, self.state.best_global_step = self.state.best_global_step, None
                try:
                    # Without a best step, because its folder is not where the library would look for it.
                    self._staging = manager.staging
                    super()._save_checkpoint(model, trial)
                    if keeps_window(self):
                        file = folder / WINDOW.format(self.args.process_index)
                        file.write_text(json.dumps(window_of(self)), encoding="utf-8")
                    self._staging = None
                    if writes and owner._run is not None:
                        (folder / LINES).write_text(json.dumps(owner._run.line_counts()), encoding="utf-8")
                    self.accelerator.wait_for_everyone()
                    if writes:
                        manager.commit(step, keep=() if best is None else (best,))
                finally:
                    self._staging, self.state.best_global_step = None, best
                    if writes:
                        manager.discard()
                self.accelerator.wait_for_everyone()
            owner.stop.saved(time.monotonic() - started)

    Durable.__name__, Durable.__qualname__ = base.__name__, base.__qualname__
    return Durable
