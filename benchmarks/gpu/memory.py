"""Memory: what `aligntune check` says a run will take, against the most that PyTorch held on the GPU.

The ratio is estimate / measured. Without a GPU the measured value is the resident memory of the whole process,
libraries included, and no ratio is given (`benchmarks/memory.py` measures the estimate on a CPU).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from gpu import configs, models
from gpu.child import answer, train
from gpu.record import Case, Part, Settings, Values

CASES: dict[str, tuple[str, str, int, int, Values]] = {
    "all weights, 0.1b, 16 x 512": ("text_generation", "0.1b", 16, 512, {"peft": None}),
    "LoRA, 1b, 8 x 1024": ("text_generation", "1b", 8, 1024, {}),
    "LoRA, 1b, checkpointed, 8 x 1024": (
        "text_generation", "1b", 8, 1024, {"train": {"gradient_checkpointing": True}},
    ),
    "4-bit LoRA, 1b, 8 x 1024": ("text_generation", "1b", 8, 1024, {"model": {"quantization": "4bit"}}),
    "8-bit LoRA, 1b, 8 x 1024": ("text_generation", "1b", 8, 1024, {"model": {"quantization": "8bit"}}),
    "8-bit Adam, all weights, 0.5b, 4 x 1024": (
        "text_generation", "0.5b", 4, 1024, {"peft": None, "train": {"optimizer": "adamw_8bit"}},
    ),
    "DPO with a reference, all weights, 0.1b, 8 pairs": ("dpo", "0.1b", 8, 128, {"peft": None}),
    "GRPO, LoRA, 1b, 32 x 64": ("grpo", "1b", 32, 128, {}),
}  # fmt: skip
"""Name to algorithm, size, sequences, length and what is laid over the run."""
SAID = """
from aligntune.core.config import load_config
from aligntune.preflight.memory import device_of, setting_of
from aligntune.utils.memory import estimate, read_shape
config = load_config(given["config"])
shape = read_shape(config.model.name_or_path)
manager, precision = device_of(config)
setting = setting_of(config, shape, device=manager.device, precision=precision, longest=given["longest"])
result = {"parameters": shape.parameters, **estimate(shape, setting).to_dict()}
"""


def cases(backend: str, settings: Settings) -> list[Case]:
    """Every case on a backend."""
    names = list(CASES) if not settings.tiny else list(CASES)[:2]
    return [Case(name, partial(_case, name, backend, settings), 240) for name in names]


def _case(name: str, backend: str, settings: Settings, seconds: float) -> Values:
    algorithm, size, batch, length, changes = CASES[name]
    folder, _ = models.build("llama", size, settings)
    batch, length = (2, 64) if settings.tiny else (batch, length)
    laid: dict[str, Any] = {**changes, "model": {"max_seq_length": length, **changes.get("model", {})}}
    values = configs.config(algorithm, settings, folder, backend=backend, steps=4, batch=batch, **laid)
    if algorithm == "text_generation":
        values["dataset"] = {"name": str(models.data(settings)["long"])}
    said = answer(SAID, 120, settings, config={**values, "output_dir": "unused"}, longest=_longest(algorithm))
    ran = train(values, f"memory/{backend}-{name}", seconds, settings)
    if not ran["ok"]:
        return {"ok": False, "error": ran["error"], "estimated": said}
    ratio = said["peak"] / ran["peak_bytes"] if ran["peak_of"] == "GPU" else None
    return {"estimated": said, "measured": ran["peak_bytes"], "measured_of": ran["peak_of"], "ratio": ratio}


def _longest(algorithm: str) -> int | None:
    """Tokens of the longest row, as `aligntune check` would count them; None where rows fill the limit."""
    return {"dpo": 64, "grpo": 40}.get(algorithm)


PARTS = [
    Part(
        f"memory-{backend}",
        f"estimates of `aligntune check` against peaks, {backend}",
        partial(cases, backend),
    )
    for backend in ("trl", "unsloth")
]
