"""Taking the trained adapter back from a checkpoint which holds a second one beside it.

    take_adapter(model, Path("out/checkpoint-8"))

PEFT writes the adapter `default` into the checkpoint's root and every other one (the frozen copy `ref`, which is the
reference in policy optimisation, and where training goes on with an adapter) into a folder of its name. Transformers
5.17 then loads the folders alone, so that a resumed run would begin again with the weights of its first step, without a
word; `core.durable` calls this for every algorithm.

Source: `Trainer._load_from_checkpoint` of Transformers 5.17 and `PeftModel.save_pretrained` of PEFT 0.21.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligntune.errors import TrainingError

WEIGHTS = "adapter_model.safetensors"


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
