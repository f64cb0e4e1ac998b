"""The TRL backend: stock TRL trainers on Transformers models, in a process that Unsloth has not touched."""

from __future__ import annotations

from typing import Any

from aligntune.core.backend import Backend
from aligntune.core.config.root import RunConfig
from aligntune.core.isolation import assert_unpatched, enter_trl
from aligntune.errors import EnvironmentError


class TRLBackend(Backend):
    """See `aligntune.core.backend.Backend`."""

    name = "trl"

    def prepare(self, config: RunConfig) -> None:
        """Set the flags and the import guard; refuse a TRL that cannot train on this machine.

        Raises:
            EnvironmentError: Unsloth was imported in this process, or TRL 1.15.0 without CUDA.
        """
        enter_trl()
        refuse_broken_trl()

    def load_model(self, config: RunConfig) -> Any:
        from aligntune.utils.model_loader import ModelLoader

        t = config.train
        return ModelLoader(
            config.model, training=True, seed=t.seed, gradient_checkpointing=t.gradient_checkpointing
        ).load()

    def fingerprint(self) -> dict[str, Any]:
        """Of the loaded training code; refuses a process in which any of it was replaced."""
        return assert_unpatched()

    def arguments(self, config: RunConfig) -> dict[str, Any]:
        """How TRL loads the reference model again, where it does (a full fine-tune with a reference)."""
        m = config.model
        if m.peft is not None or config.kind == "sft":
            return {}
        if not (m.revision or m.attn_implementation or m.trust_remote_code):
            return {}
        kwargs = {"dtype": "float32", "trust_remote_code": m.trust_remote_code}
        kwargs |= {"revision": m.revision} if m.revision else {}
        kwargs |= {"attn_implementation": m.attn_implementation} if m.attn_implementation else {}
        return {"model_init_kwargs": kwargs}


def refuse_broken_trl() -> None:
    """TRL 1.15.0 computes its losses with a Triton kernel only, so it cannot train without CUDA.

    Raises:
        EnvironmentError: that release, on a machine without CUDA.
    """
    from importlib.metadata import version

    if version("trl") != "1.15.0":
        return
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentError(
            "TRL 1.15.0 cannot train without a CUDA GPU: its loss needs a Triton kernel",
            hint="pip install trl==1.14.2",
        )
