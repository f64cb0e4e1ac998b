"""Throughput and memory: TRL against Unsloth on the same rows, alternating, with model FLOPs utilisation.

Every row fills the sequence, so that the tokens are the same on both sides and no padding is counted. TRL, Unsloth,
TRL, Unsloth, each in a fresh process; of each run the median step, the first steps left out, because they compile and
allocate. The attention is PyTorch's SDPA on both sides where Unsloth has no other, and packing is off on both.
Operations and peaks: `gpu/device.py`.
"""

from __future__ import annotations

from functools import partial

from gpu import configs, device, models
from gpu.child import median, train
from gpu.record import Case, Part, Settings, Values

LENGTH = 1024
RUNS: tuple[tuple[str, str, str, int, bool], ...] = (
    ("llama", "0.1b", "all weights", 32, False),
    ("llama", "1b", "LoRA", 8, False),
    ("llama", "1b", "4-bit LoRA", 8, False),
    ("llama", "3b", "LoRA", 4, True),
    ("qwen", "0.5b", "LoRA", 8, False),
    ("phi", "1b", "LoRA", 8, False),
)
"""Architecture, size, what is trained, sequences in a forward pass, gradient checkpointing."""


def facts(settings: Settings) -> Values:
    """What utilisation is measured against."""
    measured = device.matmul_flops(settings)
    found = device.describe(settings)["gpu"] or {}
    peak, source = device.peak(found.get("name", "")) if found else (None, "no GPU")
    return {"peak_flops": peak, "peak_source": source, "matmul_flops": measured}


def cases(chosen: str, settings: Settings) -> list[Case]:
    """The configurations of an architecture; in the tiny form the first one only."""
    wanted = [r for r in RUNS if r[0] == chosen][: 1 if settings.tiny else None]
    return [Case(f"{a} {s}, {what}", partial(_pair, (a, s, what, b, c), settings)) for a, s, what, b, c in wanted]


def _pair(case: tuple[str, str, str, int, bool], settings: Settings, seconds: float) -> Values:
    architecture, size, what, batch, checkpointing = case
    folder, figures = models.build(architecture, size, settings)
    length, steps = (64, 6) if settings.tiny else (LENGTH, 14)
    batch = 4 if settings.tiny else batch
    turns: list[tuple[str, Values]] = []
    for i, backend in enumerate(("trl", "unsloth", "trl", "unsloth")):
        values = configs.config(
            "text_generation", settings, folder, backend=backend, batch=batch, steps=steps,
            peft=None if what == "all weights" else configs.LORA,
            model={"max_seq_length": length, **({"quantization": "4bit"} if "4-bit" in what else {})},
            train={"gradient_checkpointing": checkpointing},
        )  # fmt: skip
        values["dataset"] = {"name": str(models.data(settings)["long"])}
        ran = train(values, f"speed/{architecture}-{size}-{what}/{i}-{backend}", seconds / 4, settings)
        if not ran["ok"]:
            return {"ok": False, "error": f"{backend}: {ran['error']}"}
        turns.append((backend, ran))
    tokens = batch * length
    found: Values = {"tokens_per_step": tokens, "batch": batch, "length": length, "figures": figures}
    for backend in ("trl", "unsloth"):
        mine = [ran for name, ran in turns if name == backend]
        times = [r["step_seconds"] for r in mine if r["step_seconds"]]
        step = median(times)
        found[backend] = {
            "step_seconds": step,
            "each": times,
            "tokens_per_second": None if step is None else tokens / step,
            "peak_bytes": max(r["peak_bytes"] for r in mine),
            "peak_of": mine[0]["peak_of"],
            "first_loss": mine[0]["first_loss"],
            "last_loss": mine[0]["last_loss"],
        }
    _utilise(found, figures, what == "all weights", length, settings)
    return found


def _utilise(found: Values, figures: Values, full: bool, length: int, settings: Settings) -> None:
    """Operations a second of both sides, and the ratios between them."""
    if "linear" in figures:
        each = device.flops_per_token(figures["linear"], figures["layers"], figures["width"], length, full=full)
        found["flops_per_token"] = each
        for backend in ("trl", "unsloth"):
            rate = found[backend]["tokens_per_second"]
            found[backend]["model_flops"] = None if rate is None else rate * each
    one, two = found["trl"], found["unsloth"]
    if one["step_seconds"] and two["step_seconds"]:
        found["speed_ratio"] = one["step_seconds"] / two["step_seconds"]
    found["memory_ratio"] = two["peak_bytes"] / one["peak_bytes"]


PARTS = [
    Part(
        f"speed-{a}", f"throughput, memory and MFU of TRL and Unsloth, {a} architecture", partial(cases, a), facts=facts
    )
    for a in models.ARCHITECTURES
]
