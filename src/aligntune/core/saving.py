"""Writing a trained model: weights as safetensors, tokenizer with its template, a card; and finding checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


BY_CLASS = tuple(f"eval_{name}/" for name in ("precision", "recall", "f1", "rows", "tags", "entities"))
"""Values of single classes, which `metrics.jsonl` has; a card with hundreds of them would be no card."""


def save(trainer: Trainer, folder: Path) -> Path:
    """Write model (or adapter), tokenizer and card into `folder`; returns it.

    Raises:
        ConfigurationError: the folder cannot be written, or the disk is full.
    """
    from aligntune.utils.files import disk_errors

    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
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
    return folder


def model_card(trainer: Trainer) -> str:
    """A model card that states what was trained, on what, how, and what was measured."""
    from aligntune import __version__

    config = trainer.config
    base = config.model.name_or_path
    hub = "" if Path(base).exists() else f"base_model: {base}\n"
    peft = "library_name: peft\n" if config.model.peft else "library_name: transformers\n"
    sources = ", ".join(f"`{d.name}`" + (f" ({d.split})" if d.split != "train" else "") for d in config.sources)
    measured = {
        k: v for k, v in sorted(trainer.state.metrics.items()) if k.startswith("eval_") and not k.startswith(BY_CLASS)
    }
    lines = [
        "---",
        f"{hub}{peft}tags:\n- aligntune\n- {config.algorithm.key}",
        "---",
        "",
        f"# {config.logging.run_name or Path(config.output_dir).name}",
        "",
        f"`{base}` trained with {config.algorithm.key} on {sources} (AlignTune {__version__}, backend "
        f"{config.backend}, {trainer.state.step} steps, seed {config.train.seed}).",
        "",
        "`config.resolved.yaml` repeats the run; `manifest.json` names the versions, data hashes and hardware.",
    ]
    if measured:
        lines += ["", "| held-out measure | value |", "|---|---|"]
        lines += [f"| {name.removeprefix('eval_')} | {value:.4g} |" for name, value in measured.items()]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Checkpoint:
    """A folder to resume from, and the optimizer step that it holds."""

    path: str
    step: int


def find_checkpoint(output_dir: str, wanted: str) -> Checkpoint:
    """The checkpoint `wanted`: "latest" takes the one of the highest step in `output_dir`, else it is a path.

    Algorithms of several rounds keep each in a folder `round-N`, which is a checkpoint itself once the round is done,
    and holds checkpoints of its own.

    Raises:
        ConfigurationError: there is none, or the path is none.
    """
    folder = Path(output_dir).expanduser()
    candidates = [Path(wanted).expanduser()]
    if wanted == "latest":
        candidates = [p for kind in ("round-*", "checkpoint-*", "round-*/checkpoint-*") for p in folder.glob(kind)]
    found = [Checkpoint(str(p.absolute()), step) for p in candidates if (step := _step(p)) is not None]
    if not found:
        raise ConfigurationError(
            f"there is no checkpoint to resume from in {folder}"
            if wanted == "latest"
            else f"{wanted} is no checkpoint",
            hint="start without --resume; set train.save_steps to write checkpoints",
        )
    return max(found, key=lambda c: c.step)


def _step(folder: Path) -> int | None:
    """The step of a checkpoint, those of earlier rounds included; None where its state was not written whole (the
    library writes it last)."""
    try:
        step = int(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
        before = folder.parent / "round.json"
        return step + (int(json.loads(before.read_text(encoding="utf-8"))["first_step"]) if before.exists() else 0)
    except (FileNotFoundError, NotADirectoryError, KeyError, json.JSONDecodeError):
        return None
