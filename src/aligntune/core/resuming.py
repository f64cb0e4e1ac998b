"""Where a run begins: at a checkpoint that is whole, or at the first step, and always saying which.

    resume "latest"   the newest whole checkpoint; damaged newer ones are named and left
                      a run that was stopped before its first checkpoint: the first step
    resume PATH       this one, or an error that says what is wrong with it

>>> start = find_start(trainer, "latest")
>>> start = begin(trainer, start)        # the folder is claimed: files after the checkpoint are cut

Source: the run folder's own files; nothing here reads a model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from aligntune.core.durable import LINES
from aligntune.core.early_stopping import replay
from aligntune.core.saving import Checkpoint, find_checkpoint
from aligntune.errors import ConfigurationError
from aligntune.utils.checkpoints import STAGING, CheckpointManager
from aligntune.utils.run_folder import read_manifest

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


def find_start(trainer: Trainer, resume: str | None) -> Checkpoint | None:
    """The checkpoint to go on from; None begins at the first step. Nothing is changed on the disk.

    Raises:
        ConfigurationError: there is none, or it is not whole.
    """
    if resume is None:
        return None
    folder = Path(trainer.config.output_dir).expanduser()
    if resume == "latest" and CheckpointManager(folder).latest() is None:
        if kept := trainer.config.algorithm.progress(trainer.config):
            trainer._tell([f"resuming with {kept}"])
            return None
        if read_manifest(folder) is not None:
            trainer._tell(["the run was stopped before its first checkpoint, so it begins again at the first step"])
            return None
    found = find_checkpoint(trainer.config.output_dir, resume)
    trainer._tell([*found.skipped, f"resuming from {found.path} (step {found.step})"])
    return found


def begin(trainer: Trainer, start: Checkpoint | None) -> Checkpoint | None:
    """Cut the claimed folder's files back to `start`, and count again what was measured until then.

    Returns:
        `start`, with the path that it has now.
    """
    trainer._tell(trainer._run.notes)
    if not trainer._run.resumed:
        return start
    outside = start is not None and not Path(start.path).is_relative_to(trainer._run.path)
    if not trainer._run.leads:  # the first process moves a sealed folder to its place
        if start is not None and Path(start.path).parent.name == STAGING:
            moved = Path(start.path).parents[1] / Path(start.path).name
            start = Checkpoint(str(moved), start.step, start.skipped)
    elif not outside:
        start, notes = CheckpointManager(trainer._run.path).settle(start)
        trainer._tell(notes)
    replay(trainer, trainer._run.rewind(start.step, _counts(start)) if start else trainer._run.rewind(-1))
    return start


def how_to_go_on(trainer: Trainer) -> str:
    """A sentence for someone who stopped the run, wherever it was: loading, training, or in its last evaluation."""
    if trainer._run is None:
        return "nothing was written; start again with the same command"
    if trainer.state.status == "finished":
        return f"the run is finished, and its model is in {trainer._run.path}"
    newest = trainer.state.checkpoint_path
    if newest is None:
        if kept := trainer.config.algorithm.progress(trainer.config):
            return f"go on with the same command and --resume ({kept})"
        try:
            found = CheckpointManager(trainer._run.path).latest()  # those of an earlier part of the run
        except ConfigurationError as error:
            return f"{error.message}; {error.hint}"
        if found is None:
            return "no checkpoint was written; the same command and --resume begins again at the first step"
        newest = found.path
    why = f"{trainer.stop.reason}; " if trainer.stop.reason else ""
    return f"{why}go on with the same command and --resume (checkpoint: {newest})"


def _counts(start: Checkpoint) -> dict[str, int] | None:
    """Lines that the run's files had at a checkpoint; None for the end of a round, after which all steps are later."""
    file = Path(start.path) / LINES
    if not file.is_file():
        return None
    counts: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
    return counts
