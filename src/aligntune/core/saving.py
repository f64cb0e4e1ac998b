"""Writing a trained model: weights as safetensors, tokenizer with its template, and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


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
    measured = {k: v for k, v in sorted(trainer.state.metrics.items()) if k.startswith("eval_")}
    lines = [
        "---",
        f"{hub}{peft}tags:\n- aligntune\n- {config.algorithm.key}",
        "---",
        "",
        f"# {config.logging.run_name or Path(config.output_dir).name}",
        "",
        f"`{base}` trained with {config.algorithm.key} on {sources} (AlignTune {__version__}, backend {config.backend}, "
        f"{trainer.state.step} steps, seed {config.train.seed}).",
        "",
        "`config.resolved.yaml` repeats the run; `manifest.json` names the versions, data hashes and hardware.",
    ]
    if measured:
        lines += ["", "| held-out measure | value |", "|---|---|"]
        lines += [f"| {name.removeprefix('eval_')} | {value:.4g} |" for name, value in measured.items()]
    return "\n".join(lines) + "\n"
