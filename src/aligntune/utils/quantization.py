"""Weights in 4 or 8 bit through bitsandbytes: what a machine must have, and that it was really done.

4 bit is NF4 with double quantisation (QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3); 8 bit is LLM.int8()
(Dettmers et al. 2022, arXiv:2208.07339). Both run on CUDA, and on the CPU from bitsandbytes 0.50.2 on, where the
gradients of the adapters equal those over the same weights dequantised (a test measures it).

>>> check_quantization("4bit", "mps", "Apple GPU")
EnvironmentError: model.quantization is '4bit', which runs on CUDA GPUs and on the CPU, and this run is on Apple GPU

It does not train: quantised weights are frozen, and adapters over them learn.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aligntune.errors import EnvironmentError, TrainingError

OLDEST = (0, 50, 2)
"""The first bitsandbytes whose CPU kernels were measured to train."""
INSTALL = "pip install bitsandbytes==0.50.2"
LAYERS = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}
"""What stands in a model in place of its linear layers (bitsandbytes' class names)."""


def check_quantization(kind: str, device: str, device_name: str) -> None:
    """Refuse quantisation that this machine cannot do, before anything is read.

    Args:
        kind: "4bit" or "8bit".
        device: "cpu", "cuda" or "mps".
        device_name: the device in words.

    Raises:
        EnvironmentError: another device, no bitsandbytes, or one that is too old for the CPU.
    """
    wanted = f"model.quantization is '{kind}'"
    if device not in ("cpu", "cuda"):
        raise EnvironmentError(
            f"{wanted}, which runs on CUDA GPUs and on the CPU, and this run is on {device_name}",
            hint="set model.device to cpu, or drop model.quantization",
        )
    try:
        found = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError as error:
        raise EnvironmentError(
            f"{wanted}, which needs the bitsandbytes package, and it is not installed", hint=f"run `{INSTALL}`"
        ) from error
    numbers = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in found.split(".")[:3])
    if device == "cpu" and numbers < OLDEST:
        raise EnvironmentError(
            f"{wanted}, which on the CPU needs bitsandbytes {'.'.join(map(str, OLDEST))} or newer, and {found} is "
            "installed",
            hint=f"run `{INSTALL}`",
        )


def quantized_layers(model: Any, kind: str) -> list[Any]:
    """The bitsandbytes layers of a model (PEFT's wrappers around them have the same class names)."""
    wanted = LAYERS[kind]
    return [
        module
        for module in model.modules()
        if type(module).__name__ == wanted and type(module).__module__.startswith("bitsandbytes")
    ]


def settle_quantized(model: Any, kind: str) -> int:
    """Check that a loaded model is quantised, and keep its weights in the layout that can be trained over.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 rearranges 4-bit weights for good in the first forward pass without
    gradient (an evaluation), and the training that goes on raises or reads them in the wrong order. Its CPU kernel
    also reads 4-bit weights wrongly where the rows of a matrix are not whole blocks of 64 numbers (relative error 0.16
    to 0.56 in place of 0.09).

    Returns:
        The number of quantised layers.

    Raises:
        TrainingError: no layer is quantised, which a backend may fall back to without a word.
        EnvironmentError: 4-bit weights on the CPU with rows that its kernel cannot read.
    """
    layers = quantized_layers(model, kind)
    if not layers:
        raise TrainingError(
            f"model.quantization is '{kind}', and no layer of {type(model).__name__} was quantised",
            hint="drop model.quantization, or set the other backend",
        )
    for layer in layers:
        block = getattr(getattr(layer.weight, "quant_state", None), "blocksize", 1)
        if layer.weight.device.type == "cpu" and layer.in_features % block:
            raise EnvironmentError(
                f"model.quantization is '{kind}', and on the CPU bitsandbytes misreads layers whose input width is not "
                f"a multiple of {block}: this model has one of {layer.in_features}",
                hint="set model.quantization to 8bit, or run on a GPU",
            )
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return len(layers)


@contextmanager
def kept_adapters(model: Any, quantized: bool) -> Iterator[None]:
    """Give adapters back the values and the dtype that they had before the block.

    TRL rounds the adapters over quantised weights to bf16 when a trainer is made. Trained weights stay in fp32 here, as
    everywhere else: updates of a small learning rate would be lost in bf16's eight bits, and a reference that is a copy
    of the adapter would differ from it at the start.
    """
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad} if quantized else {}
    yield
    for name, weight in model.named_parameters():
        if name in before:
            weight.data = before[name].to(weight.device)
