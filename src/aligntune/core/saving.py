"""Writing a trained model: weights as safetensors, tokenizer with its template, a card; and finding checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.core.card import model_card
from aligntune.errors import ConfigurationError
from aligntune.utils.checkpoints import Checkpoint, CheckpointManager, fault, publish, step_of

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


STAGED = ".saving-model"
"""Folder of a model that is being written, inside the one where it goes."""


def save(trainer: Trainer, folder: Path) -> Path:
    """Write model (or adapter), tokenizer and card into `folder`; returns it.

    The files are written aside, synced, and moved into `folder` by renaming, the model's configuration last: no process
    that is killed leaves half a file, or a model that loads and is not whole.

    Raises:
        ConfigurationError: the folder cannot be written, or the disk is full.
    """
    from aligntune.utils.files import disk_errors

    if trainer._hf is not None and not trainer._hf.args.should_save:
        return folder  # another process of the run writes it
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / STAGED
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        try:
            _write(trainer, made)
            publish(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def _write(trainer: Trainer, folder: Path) -> None:
    model = trainer._hf.accelerator.unwrap_model(trainer._hf.model) if trainer._hf else trainer.model
    options: dict[str, Any] = {}
    if hasattr(model, "peft_config"):
        options["selected_adapters"] = ["default"]  # not the frozen copy that serves as reference
    model.save_pretrained(folder, **options)
    if (plugin := getattr(trainer._hf, "plugin", None)) is not None:
        plugin.save(folder)
    trainer.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(trainer), encoding="utf-8")
    if not any(folder.glob("*.safetensors")):
        raise ConfigurationError(f"no weights were written to {folder}", hint="look at the disk's free space")


def find_checkpoint(output_dir: str, wanted: str) -> Checkpoint:
    """The checkpoint `wanted`: "latest" takes the newest whole one in `output_dir`, else it is a path.

    Algorithms of several rounds keep each in a folder `round-N`, which is a checkpoint itself once the round is done,
    and holds checkpoints of its own.

    Raises:
        ConfigurationError: there is none, or it is not whole.
    """
    if wanted == "latest":
        found = CheckpointManager(output_dir).latest()
        if found is None:
            raise ConfigurationError(
                f"there is no checkpoint to resume from in {Path(output_dir).expanduser()}",
                hint="start without --resume; set train.save_steps to write checkpoints",
            )
        return found
    folder = Path(wanted).expanduser().absolute()
    step = step_of(folder)
    why = fault(folder) if step is not None else "it holds no state of a run"
    if step is None or why is not None:
        raise ConfigurationError(
            f"{wanted} is no checkpoint to resume from: {why}",
            hint="write --resume alone, which takes the newest whole one; to start from its weights, set "
            "model.name_or_path to it",
        )
    return Checkpoint(str(folder), step)


__all__ = ["Checkpoint", "find_checkpoint", "model_card", "save"]
