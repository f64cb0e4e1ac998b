"""One set of 16-bit weights out of a base model and the adapters trained on it, for programs that take no LoRA.

    trainer.save_merged("runs/merged")       # W + (alpha / r) B A for every adapted layer, in bf16

The base model is read again in 16 bit, so adapters over 4-bit or 8-bit weights are merged into the weights that were
quantised (Dettmers et al. 2023, arXiv:2305.14314, trains against the rounded ones: answers can differ in places). The
model in training is left as it is. Unsloth merges by its own program where it loaded the model.

It does not merge several adapters, quantise, or write GGUF files.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError
from aligntune.utils.logging import quiet_libraries

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


class Merging:
    """The method `save_merged` of the trainers."""

    def save_merged(self: Any, path: str | Path) -> Path:
        """Write base model and adapters as one 16-bit model, with the tokenizer; returns the folder.

        bf16, or fp16 where the run is in fp16. In a run of several processes the first one writes.

        Args:
            path: a folder that is missing or empty.

        Raises:
            ConfigurationError: this run trains no adapters, or the folder holds something.
            EnvironmentError: the backend cannot merge on this machine.
        """
        return merge(self, Path(path).expanduser())


def merge(trainer: Trainer, folder: Path) -> Path:
    """See `Merging.save_merged`."""
    from aligntune.utils.files import disk_errors

    hf = trainer._hf
    model = hf.accelerator.unwrap_model(hf.model) if hf is not None else trainer.model
    if not hasattr(model, "peft_config") or trainer.config.algorithm.head != "causal_lm":
        raise ConfigurationError(
            "there is nothing to merge: this run trains no adapters of a language model",
            hint="save_model() writes the whole model",
        )
    if hf is not None and not hf.args.should_save:
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} holds something already", hint="name another folder")
    with disk_errors(folder), quiet_libraries():
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".merging-", dir=folder.parent))
        try:
            trainer.backend.save_merged(trainer.config, model, trainer.tokenizer, aside / "model")
            if not any((aside / "model").glob("*.safetensors")):
                raise ConfigurationError(f"no weights were written to {folder}", hint="look at the disk's free space")
            if folder.exists():
                folder.rmdir()
            (aside / "model").rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def merge_again(config: Any, model: Any, tokenizer: Any, folder: Path) -> None:
    """Merge the trained adapters into the base model as it is stored, read anew.

    Args:
        config: the run.
        model: the PEFT model; only its adapters are read.
        tokenizer: goes beside the weights.
        folder: to write to.
    """
    import torch

    from aligntune.utils.model_loader import ModelLoader

    with tempfile.TemporaryDirectory(prefix="aligntune-adapter-") as name:
        model.save_pretrained(name, selected_adapters=["default"])
        tokenizer.save_pretrained(name)
        again = dataclasses.replace(
            config.model, name_or_path=name, revision=None, peft=None, quantization=None, precision="fp32", device="cpu"
        )
        merged = ModelLoader(again, training=False, seed=config.train.seed).load().model.merge_and_unload()
        merged.to(torch.float16 if config.model.precision == "fp16" else torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
