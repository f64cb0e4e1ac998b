"""Before weights are loaded on a GPU: what the run will take, beside what the GPU has.

    about 4.1 GB of the 16 GB of NVIDIA T4 at its peak (forward)

Where the weights alone are larger than the GPU the run is refused; where the estimated peak is, the run is warned and
begins, because estimates of activations have been measured on the CPU only (`aligntune.utils.memory`). The command
`aligntune check` says the same in parts, before anything is loaded.

The model's shape is read from its configuration alone, after the backend has prepared the process, so both backends
tell it. Not for classifiers, and without what Unsloth's kernels save: there the estimate is TRL's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.core.exhaustion import SETTING, advice
from aligntune.errors import EnvironmentError
from aligntune.registry import import_attribute
from aligntune.utils.logging import get_logger

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

log = get_logger(__name__)
SHAPE, CAPACITY = "aligntune.preflight.memory:shape", "aligntune.preflight.memory:capacity"


def check_room(trainer: Trainer) -> None:
    """Tell the estimate of a run on a GPU; nothing on other devices, or where the model's shape is not known.

    Raises:
        EnvironmentError: the weights alone do not fit.
    """
    from aligntune.utils.device import DeviceManager
    from aligntune.utils.memory import estimate

    config = trainer.config
    trainer._ready()
    if config.algorithm.head != "causal_lm":
        return
    device = DeviceManager(config.model.device)
    shape = import_attribute(SHAPE)(config)[0] if device.device == "cuda" else None
    if shape is None:
        return
    setting = import_attribute(SETTING)(
        config, shape, device=device.device, precision=device.precision(config.model.precision)
    )
    said, (has, name) = estimate(shape, setting), import_attribute(CAPACITY)(device)
    hint = "; ".join(advice(config))
    if said.loading > has:
        raise EnvironmentError(
            f"the weights of {config.model.name_or_path} alone take about {said.loading / 1e9:.1f} GB, and {name} has "
            f"{has / 1e9:.1f} GB",
            hint=hint,
            context={**said.to_dict(), "capacity": has},
        )
    told = f"about {said.peak / 1e9:.1f} GB of the {has / 1e9:.1f} GB of {name} at its peak ({said.moment})"
    if said.peak > has:
        log.warning("memory may run out: %s; %s", told, hint)
        trainer.notes.append(f"memory may run out: {told}; {hint}")
    else:
        trainer._tell([told])
