"""What the suite runs on: the GPU, its peak, and the floating-point operations that training a token takes.

Model FLOPs utilisation (MFU) is the operations that the model needs for the tokens that were trained on, per second,
over what the device can do (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Per token, with N the weights of the
linear layers (the output layer included, the embedding table not: it is looked up), L layers, a the width of all heads
together and T the length of the sequence:

    forward     2 N + 4 L a T
    backward    2 N (activations) + 2 N (weights, of those that are trained) + 8 L a T

so 6 N + 12 L a T where everything is trained, and 4 N + 12 L a T under adapters, whose own operations (below 2%) are
left out, as are recomputation and the causal mask's half. Worked: N = 1e9, L = 16, a = 2048, T = 1024 in full training:
6e9 + 12 * 16 * 2048 * 1024 = 6.4e9 a token; 50,000 tokens a second are 320 TFLOP/s, 32% of an H100's 989.

The peaks are those of the makers' data sheets for dense bf16 (fp16 where there is no bf16) matrix products; a device
that is not in the table has no MFU, only the share of a matrix product that was measured beside it.
"""

from __future__ import annotations

import shutil
import subprocess

import machine
from gpu.child import answer
from gpu.record import Settings, Values

PEAKS: tuple[tuple[str, float, str], ...] = (
    ("H200", 989e12, "NVIDIA H200 data sheet: 1,979 with sparsity"),
    ("H100 NVL", 835e12, "NVIDIA H100 data sheet: 1,671 with sparsity"),
    ("H100 PCIe", 756e12, "NVIDIA H100 data sheet: 1,513 with sparsity"),
    ("H100", 989e12, "NVIDIA H100 data sheet, SXM: 1,979 with sparsity"),
    ("A100", 312e12, "NVIDIA A100 data sheet"),
    ("L40S", 362e12, "NVIDIA L40S data sheet: 733 with sparsity"),
    ("A10G", 70e12, "NVIDIA A10G data sheet"),
    ("A10", 125e12, "NVIDIA A10 data sheet"),
    ("L4", 121e12, "NVIDIA L4 data sheet: 242 with sparsity"),
    ("T4", 65e12, "NVIDIA T4 data sheet, fp16"),
    ("V100", 125e12, "NVIDIA V100 data sheet, SXM2, fp16"),
    ("RTX 4090", 165e12, "NVIDIA Ada whitepaper, fp32 accumulation: 330 with sparsity"),
    ("RTX 3090", 71e12, "NVIDIA GA102 whitepaper, fp32 accumulation: 142 with sparsity"),
)
"""Part of a device's name, its peak in FLOP/s, and where that stands; the first that fits counts."""
MATMUL = """
import time, torch
device, n = given["device"], given["n"]
dtype = torch.bfloat16 if device == "cuda" else torch.float32
a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
for _ in range(3): a @ b
best = float("inf")
for _ in range(5):
    wait(); start = time.perf_counter()
    for _ in range(given["times"]): a @ b
    wait(); best = min(best, (time.perf_counter() - start) / given["times"])
result = 2 * n**3 / best
"""


def peak(name: str) -> tuple[float | None, str]:
    """A device's peak in FLOP/s by its name, and the source; None for one that is not in the table."""
    for part, flops, source in PEAKS:
        if part in name:
            return flops, source
    return None, "not in the table"


def flops_per_token(linear: int, layers: int, width: int, length: int, *, full: bool) -> float:
    """Operations of training one token; see the module's text.

    Args:
        linear: weights of the linear layers, the output layer included.
        layers: their number.
        width: of all attention heads together.
        length: tokens of a sequence.
        full: whether all weights are trained.
    """
    return (6 if full else 4) * linear + 12.0 * layers * width * length


def matmul_flops(settings: Settings) -> float:
    """FLOP/s of a large square matrix product: bf16 on a GPU, fp32 on the CPU."""
    given = {"device": "cpu", "n": 512, "times": 3} if settings.cpu else {"device": "cuda", "n": 8192, "times": 20}
    return float(answer(MATMUL, 120, settings, **given))


def describe(settings: Settings) -> Values:
    """The machine, its GPU and the versions of the two packages."""
    found = machine.describe()
    for package in ("unsloth", "unsloth_zoo", "bitsandbytes", "triton", "vllm", "xformers", "flash-attn"):
        found["packages"][package] = machine._version(package)
    found["gpu"] = None if settings.cpu else _gpu()
    return found


def _gpu() -> Values | None:
    """Name, memory and driver of the first GPU, from nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    keys = ("name", "memory.total", "driver_version", "power.limit", "clocks.max.sm")
    line = [program, f"--query-gpu={','.join(keys)}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    if done.returncode:
        return None
    return dict(zip(keys, (value.strip() for value in done.stdout.splitlines()[0].split(",")), strict=False))
