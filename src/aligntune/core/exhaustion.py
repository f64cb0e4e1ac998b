"""Where memory runs out, or a process that loads data dies: what to change, by how much, and going on by itself.

    train: {per_device_batch_size: 8, auto_batch: true}
    # memory ran out in step 3 with 8 sequences at once: going on with 4, twice accumulated, from checkpoint-2

Halving `per_device_batch_size` and doubling `gradient_accumulation_steps` leaves the update as it is: the losses are
means over equal parts, or sums over a count of the whole batch. Where an algorithm looks at the sequences of one
forward pass together (`bound_to_batch`), the key is refused. A step that failed half way may have changed random
states, so a run goes on from its newest checkpoint, else from its first step; the manifest's `auto_batch` lists each
change.

The figures in the advice are those of `aligntune.utils.memory`, which are estimates. It does not look for a batch size
that would be larger than the configured one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aligntune.core.recording import warn
from aligntune.core.resuming import begin
from aligntune.core.state import TrainingState
from aligntune.errors import AlignTuneError, TrainingError, first_line
from aligntune.registry import import_attribute
from aligntune.utils.checkpoints import Checkpoint, CheckpointManager

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

TEXTS = ("out of memory", "can't allocate memory", "cannot allocate memory", "failed to allocate")
"""What CUDA, MPS and PyTorch's CPU allocator say."""
SETTING = "aligntune.preflight.memory:setting_of"  # a lazy name, because the checks stand in a higher layer
Loop = Callable[[Checkpoint | None], tuple[float, float]]


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, AlignTuneError) or not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ == "OutOfMemoryError" or any(text in str(error).lower() for text in TEXTS)


def guarded(trainer: Trainer, checkpoint: Checkpoint | None, loop: Loop) -> tuple[float, float]:
    """Run the library's loop; again with half the batch where memory runs out and `train.auto_batch` is set.

    Raises:
        TrainingError: memory ran out, with what to change; or a process that loads data died.
    """
    while True:
        try:
            return loop(checkpoint)
        except (RuntimeError, MemoryError) as error:
            if "DataLoader worker" in str(error) and not isinstance(error, AlignTuneError):
                raise _worker_error(trainer, error) from error
            if not is_exhaustion(error):
                raise
            failed = first_line(error)
            if not can_halve(trainer):
                raise _memory_error(trainer, failed) from error
        # Outside of the block, because the error's frames hold the tensors of the step.
        checkpoint = _halve(trainer, failed)


def can_halve(trainer: Trainer) -> bool:
    """Whether the run may go on with half the batch."""
    train = trainer.config.train
    return train.auto_batch and train.per_device_batch_size > 1 and not halved(trainer.config)[1]


def halved(config: Any) -> tuple[Any, list[tuple[str, str]]]:
    """The configuration with half the batch and twice the accumulation, and the faults that it has."""
    t = config.train
    size = t.per_device_batch_size // 2
    faults = [] if t.per_device_batch_size % 2 == 0 else [("train.per_device_batch_size", "is odd")]
    train = replace(
        t, per_device_batch_size=max(size, 1), gradient_accumulation_steps=2 * t.gradient_accumulation_steps
    )
    made = replace(config, train=train)
    return made, [*faults, *made.algorithm.faults(made)]


def _halve(trainer: Trainer, failed: str) -> Checkpoint | None:
    step, before = trainer.state.step + 1, trainer.config.train
    trainer._hf = trainer._loaded = None
    gc.collect()
    _empty_caches()
    trainer.config, _ = halved(trainer.config)
    now = trainer.config.train
    start = CheckpointManager(trainer._run.path).latest()
    trainer.state, trainer._run.resumed = TrainingState(status="running"), True
    start = begin(trainer, start)
    warn(
        trainer,
        f"memory ran out in step {step} with train.per_device_batch_size {before.per_device_batch_size} ({failed}); "
        f"the run goes on with {now.per_device_batch_size} and train.gradient_accumulation_steps "
        f"{now.gradient_accumulation_steps} from {start.path if start else 'its first step'}",
    )
    entry = {
        "step": step,
        "per_device_batch_size": [before.per_device_batch_size, now.per_device_batch_size],
        "gradient_accumulation_steps": [before.gradient_accumulation_steps, now.gradient_accumulation_steps],
        "from_step": start.step if start else 0,
    }
    trainer.batch_changes.append(entry)
    trainer._run.update_manifest({"auto_batch": trainer.batch_changes})
    return start


def _empty_caches() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _memory_error(trainer: Trainer, failed: str) -> TrainingError:
    config, step = trainer.config, trainer.state.step + 1
    peaks = estimates(trainer)
    told = "; ".join(f"{size} at once: about {peak / 1e9:.2f} GB" for size, peak in peaks)
    return TrainingError(
        f"memory ran out in step {step} ({failed})" + (f"; estimates of its peak: {told}" if told else ""),
        hint="; ".join(advice(config)) + "; then go on with --resume",
        context={"step": step, "estimates": dict(peaks)},
    )


def advice(config: Any) -> list[str]:
    """What to change, the change that costs least first."""
    t, model, found = config.train, config.model, []
    bound = config.algorithm.bound_to_batch(config)
    if t.per_device_batch_size > 1:
        made, faults = halved(config)
        now = made.train
        change = f"train.per_device_batch_size={now.per_device_batch_size}"
        if bound is None and not faults:
            change += f" train.gradient_accumulation_steps={now.gradient_accumulation_steps} (the same update"
            change += ", and train.auto_batch=true does it by itself)" if not t.auto_batch else ")"
        found.append(f"set {change}")
    if not t.gradient_checkpointing:
        found.append("set train.gradient_checkpointing=true")
    if hasattr(config, "generation") and config.algorithm.uses_rewards:
        found.append(f"lower generation.max_completion_length (it is {config.generation.max_completion_length})")
    else:
        found.append(f"lower model.max_seq_length (it is {model.max_seq_length})")
    if model.peft is None:
        found.append("train an adapter with model.peft={}")
    elif model.quantization is None:
        found.append("set model.quantization=4bit")
    return found


def estimates(trainer: Trainer) -> list[tuple[int, int]]:
    """Sequences at once, and the estimated peak in bytes, for the batch and its halves; none where it is not known."""
    from aligntune.utils.device import DeviceManager
    from aligntune.utils.memory import estimate, shape_of

    config = trainer.config
    if config.algorithm.head != "causal_lm" or trainer._loaded is None:
        return []
    device = DeviceManager(config.model.device)
    precision = device.precision(config.model.precision)
    try:
        shape = shape_of(trainer._loaded.model)
    except (AttributeError, ValueError):  # an architecture that the estimate does not know
        return []
    found: list[tuple[int, int]] = []
    size = config.train.per_device_batch_size
    while size and len(found) < 3:
        made = replace(config, train=replace(config.train, per_device_batch_size=size))
        setting = import_attribute(SETTING)(made, shape, device=device.device, precision=precision)
        found.append((size, int(estimate(shape, setting).peak)))
        size //= 2
    return found


def _worker_error(trainer: Trainer, error: BaseException) -> TrainingError:
    return TrainingError(
        f"a process that loads data died in step {trainer.state.step + 1} ({first_line(error)})",
        hint="set train.dataloader_workers=0, or lower it: each takes memory of its own (in a container, raise its "
        "shared memory, as docker's --shm-size); then go on with --resume",
        context={"step": trainer.state.step + 1, "workers": trainer.config.train.dataloader_workers},
    )
