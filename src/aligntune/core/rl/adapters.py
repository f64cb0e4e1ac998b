"""A library trainer that takes the trained adapter back from a checkpoint which holds a second one beside it.

    trainer_class = restoring(trl.DPOTrainer)

PEFT writes the adapter `default` into the checkpoint's root and every other one (the frozen copy `ref`, which is the
reference where training goes on with an adapter) into a folder of its name. Transformers 5.17 then loads the folders
alone, so that a resumed run would begin again with the weights of its first step, without a word.

Source: `Trainer._load_from_checkpoint` of Transformers 5.17 and `PeftModel.save_pretrained` of PEFT 0.21.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from aligntune.errors import TrainingError

WEIGHTS = "adapter_model.safetensors"


@cache
def restoring(base: type) -> type:
    """`base` (a trainer class of Transformers' line) with the adapter `default` of a checkpoint's root loaded too."""

    class Restoring(base):  # type: ignore[misc, valid-type]
        """See `restoring`."""

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            target = self.accelerator.unwrap_model(self.model if model is None else model)
            if len(getattr(target, "peft_config", {})) > 1:
                take_adapter(target, Path(resume_from_checkpoint))

    Restoring.__name__, Restoring.__qualname__ = base.__name__, base.__qualname__
    return Restoring


def take_adapter(model: Any, folder: Path) -> None:
    """Put the adapter that is stored in `folder` into the model's adapter `default`.

    Raises:
        TrainingError: there is none, or it does not fit.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise TrainingError(f"{folder} holds no adapter", hint="resume from another checkpoint, or start anew")
    stored = load_file(folder / WEIGHTS)
    outcome = set_peft_model_state_dict(model, stored, adapter_name="default")
    if outcome.unexpected_keys:
        raise TrainingError(
            f"the adapter of {folder} does not fit the model: {', '.join(sorted(outcome.unexpected_keys)[:3])}",
            hint="give model.peft the values that the run began with",
        )
