"""Which device and precision a run uses, and how much memory it took.

Source of the rules: bf16 needs compute capability 8.0 (NVIDIA Ampere and later) or a CPU; fp16 mixed
precision needs gradient scaling, which PyTorch has for GPUs.

>>> DeviceManager("cpu").precision("auto")
'fp32'

It does not place models or start processes; Accelerate does.
"""

from __future__ import annotations

import os
import sys
from functools import cached_property
from typing import Any, Literal

from aligntune import errors

Device = Literal["cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]


class DeviceManager:
    """Choose a device, and answer what it can do.

    Args:
        device: `auto` takes CUDA, then MPS, then the CPU; a name is checked against the machine.

    Raises:
        errors.EnvironmentError: `cuda` or `mps` is asked for and PyTorch does not find it.
        errors.ConfigurationError: the name is none of auto, cpu, cuda, mps.
    """

    def __init__(self, device: str = "auto") -> None:
        import torch

        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        if device == "auto":
            device = next(name for name, is_there in there.items() if is_there)
        if device not in there:
            raise errors.ConfigurationError(
                f"unknown device '{device}'", hint="model.device is one of auto, cpu, cuda, mps"
            )
        if not there[device]:
            raise errors.EnvironmentError(
                f"model.device is '{device}', and PyTorch {torch.__version__} finds no such device here",
                hint="set model.device to auto or cpu, or install a PyTorch build for this device",
            )
        self.device: Device = device  # type: ignore[assignment]

    @cached_property
    def bf16(self) -> bool:
        """True where bfloat16 runs in hardware (emulation on older GPUs does not count) or on the CPU."""
        import torch

        if self.device == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return self.device == "cpu" or bool(torch.backends.mps.is_macos_or_newer(14, 0))

    def precision(self, requested: str = "auto") -> Precision:
        """The precision to train in.

        auto is bf16 on a GPU that has it, fp16 on an older one, and fp32 on the CPU and on MPS.

        Raises:
            errors.EnvironmentError: the device does not support what is asked for.
            errors.ConfigurationError: the name is none of auto, fp32, bf16, fp16.
        """
        if requested == "auto":
            return "fp32" if self.device != "cuda" else ("bf16" if self.bf16 else "fp16")
        if requested not in ("fp32", "bf16", "fp16"):
            raise errors.ConfigurationError(
                f"unknown precision '{requested}'", hint="model.precision is one of auto, fp32, bf16, fp16"
            )
        if requested == "bf16" and not self.bf16:
            raise errors.EnvironmentError(
                f"model.precision is 'bf16', which {self.name} does not support",
                hint="set model.precision to fp16, or to auto",
            )
        if requested == "fp16" and self.device == "cpu":
            raise errors.EnvironmentError(
                "model.precision is 'fp16', which needs a GPU's loss scaling, and this run is on the CPU",
                hint="set model.precision to bf16 or fp32, or to auto",
            )
        return requested  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """The device as a person would call it: the GPU's product name, "Apple GPU" or "the CPU"."""
        import torch

        if self.device == "cuda":
            return str(torch.cuda.get_device_name())
        return "the CPU" if self.device == "cpu" else "Apple GPU"

    def summary(self) -> dict[str, Any]:
        """Device, PyTorch version and threads; on CUDA also each GPU with memory and compute capability."""
        import torch

        found: dict[str, Any] = {
            "device": self.device,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "bf16": self.bf16,
        }
        if self.device == "cuda":
            found["cuda"] = torch.version.cuda
            found["gpus"] = [
                {
                    "name": properties.name,
                    "memory_bytes": properties.total_memory,
                    "capability": f"{properties.major}.{properties.minor}",
                }
                for properties in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
            ]
        return found

    def memory(self) -> dict[str, int]:
        """Bytes in use: `rss`, `peak_rss` of this process; on CUDA also `gpu`, `peak_gpu` (PyTorch's
        allocator).
        """
        found = {"rss": rss_bytes(), "peak_rss": peak_rss_bytes()}
        if self.device == "cuda":
            import torch

            found["gpu"] = torch.cuda.memory_allocated()
            found["peak_gpu"] = torch.cuda.max_memory_allocated()
        return found


def rss_bytes() -> int:
    """Resident memory of this process in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_gpu_bytes() -> int | None:
    """Most memory that PyTorch held on the GPU so far, in bytes; None where it uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return int(sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())))


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes; where the system keeps none, what it is
    now.
    """
    if os.name == "nt":
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", rss_bytes()))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux, bytes on macOS
