"""The Unsloth backend: Unsloth's model loading, and the same trainer definitions, which its import rebinds.

Unsloth must be imported before TRL, Transformers and PEFT, in a process of its own. Without a GPU its CPU backend
trains for real (2026.10.9). Every value is passed explicitly, because its defaults differ (4 bit loading is on, seeds
are 3407).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from aligntune.backends.unsloth.loading import (
    accepted,
    adapter_arguments,
    load_arguments,
    returning_logits,
    uses_vllm,
)
from aligntune.core.backend import BACKENDS, Backend
from aligntune.core.backend_choice import version_conflicts
from aligntune.core.config.root import RunConfig
from aligntune.core.isolation import enter_unsloth, watched_environment
from aligntune.errors import ConfigurationError, EnvironmentError
from aligntune.registry import import_attribute


class UnslothBackend(Backend):
    """See `aligntune.core.backend.Backend`."""

    name = "unsloth"

    def prepare(self, config: RunConfig) -> None:
        """Import Unsloth first of all, with its statistics off and its compile cache out of the working folder.

        Raises:
            EnvironmentError: TRL, Transformers or PEFT came first, or Unsloth finds no usable device.
        """
        first = "unsloth" not in sys.modules
        enter_unsloth()
        if first:
            _refuse_versions()
            self._import()
        if on_cpu():
            _refuse_on_cpu(config)
        else:
            _refuse_on_gpu(config)

    def check(self, config: RunConfig) -> None:
        """Refuse versions that it does not declare to work with, and what its CPU backend would ignore."""
        from aligntune.utils.device import DeviceManager

        _refuse_versions()
        if DeviceManager("auto").device == "cpu":
            _refuse_on_cpu(config)

    def _import(self) -> None:
        try:
            # It prints a banner; standard output is the command's own.
            with contextlib.redirect_stdout(sys.stderr), watched_environment():
                os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
                os.environ["UNSLOTH_DISABLE_AUTO_PADDING_FREE"] = "1"
                if "UNSLOTH_COMPILE_LOCATION" not in os.environ:
                    os.environ["UNSLOTH_COMPILE_LOCATION"] = _compiled_folder()
                import_attribute("unsloth:FastLanguageModel")
        except (ImportError, NotImplementedError) as e:
            raise EnvironmentError(
                f"Unsloth cannot be used on this machine: {e}",
                hint=f"run `{BACKENDS['unsloth'].install}`, or set `backend: trl`",
            ) from e

    def load_model(self, config: RunConfig) -> Any:
        """Through `FastLanguageModel`; adapters before the trainer, with the run's seed."""
        import torch

        from aligntune.utils.device import DeviceManager
        from aligntune.utils.model_loader import Loaded, ModelLoader
        from aligntune.utils.quantization import settle_quantized
        from aligntune.utils.tokenizer import prepare_tokenizer

        fast = import_attribute("unsloth:FastLanguageModel")
        m, peft = config.model, config.model.peft
        loader = ModelLoader(m, training=True, seed=config.train.seed)
        loader.model_kwargs()  # refuses quantisation that this machine cannot do
        if loader.source.adapter is not None:
            raise ConfigurationError(
                f"{m.name_or_path} is a LoRA adapter, which the Unsloth backend cannot go on training",
                hint="merge it into its base model first, or set `backend: trl`",
            )
        precision = DeviceManager("auto").precision(m.precision)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        loading, adapting = load_arguments(config, dtype), adapter_arguments(config)
        with contextlib.redirect_stdout(sys.stderr):
            model, tokenizer = fast.from_pretrained(**accepted(fast.from_pretrained, loading))
            if m.quantization is not None:
                settle_quantized(model, m.quantization)
            if peft is not None:
                model = fast.get_peft_model(model, **adapting)
        settle_precision(precision)
        notes = prepare_tokenizer(tokenizer, m, training=True)
        for settings in (model.config, model.generation_config):
            settings.pad_token_id = tokenizer.pad_token_id
        return Loaded(model=model, tokenizer=tokenizer, path=loader.source.path, notes=notes)

    def arguments(self, config: RunConfig) -> dict[str, Any]:
        """`top_k` as Unsloth's trainer writes it where its model stands inside vLLM: -1 is off, as 0 is here."""
        return {"top_k": -1} if uses_vllm(config) and config.generation.top_k == 0 else {}  # type: ignore[attr-defined]

    def per_token_logps(self, model: Any, inputs: dict[str, Any], temperature: float) -> Any:
        """See `Backend.per_token_logps`; Unsloth's forward pass is told to return logits, not hidden states."""
        with returning_logits():
            return super().per_token_logps(model, inputs, temperature)

    def save_merged(self, config: RunConfig, model: Any, tokenizer: Any, folder: Path) -> None:
        """See `Backend.save_merged`; by Unsloth, which merges 4-bit weights layer by layer."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                model.save_pretrained_merged(str(folder), tokenizer, save_method="merged_16bit")
        except NotImplementedError as e:
            raise EnvironmentError(
                f"Unsloth cannot merge these adapters on this machine: {e}",
                hint="save the adapters (save_model), and merge them on a GPU or on `backend: trl`",
            ) from e


def _compiled_folder() -> str:
    """A folder for what Unsloth generates, which goes when this process ends.

    Not one that runs share: the generated modules are imported by name from it, so that two runs at once would write
    each other's code while the other imports it. Nothing is lost, because Unsloth writes them anew in every process;
    PyTorch keeps its compiled kernels elsewhere (`TORCHINDUCTOR_CACHE_DIR`).
    """
    folder = tempfile.mkdtemp(prefix="aligntune-unsloth-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return os.path.join(folder, "cache")


def _refuse_versions() -> None:
    """Refuse library versions that Unsloth's own metadata rules out, which it does not look at itself.

    Raises:
        EnvironmentError: names the first pair.
    """
    if problems := version_conflicts():
        raise EnvironmentError(
            f"Unsloth does not fit the installed libraries: {problems[0]}",
            hint="install the tested set (pip install -c constraints.txt trl transformers datasets), "
            f"run `{BACKENDS['unsloth'].install}`, or set `backend: trl`",
            context={"conflicts": problems},
        )


def settle_precision(precision: str) -> None:
    """Keep fp32 from becoming bf16: without both flags the rewritten trainers switch mixed precision on.

    They leave the flags alone where this variable says that no weights are mixed. `from_pretrained` sets it anew.

    Args:
        precision: "fp32", "bf16" or "fp16".
    """
    if precision == "fp32":
        os.environ["UNSLOTH_MIXED_PRECISION"] = "bfloat16"


def on_cpu() -> bool:
    """Whether the imported Unsloth runs its CPU backend."""
    return bool(getattr(sys.modules.get("unsloth"), "_IS_CPU_BACKEND", False))


def _refuse_on_gpu(config: RunConfig) -> None:
    """Refuse what Unsloth's rewritten trainers leave out with a warning, and what its vLLM cannot do.

    Raises:
        ConfigurationError: an adaptive entropy bonus, or vLLM with all weights trained.
    """
    if uses_vllm(config) and config.model.peft is None:
        raise ConfigurationError(
            "generation.use_vllm on Unsloth shares the frozen weights with vLLM, and model.peft is not set",
            hint="set model.peft to train LoRA adapters, or `backend: trl`",
        )
    if getattr(config.algorithm, "use_adaptive_entropy", False):
        raise ConfigurationError(
            "algo.use_adaptive_entropy has no effect in Unsloth's trainer",
            hint="set a fixed algo.entropy_coef, or `backend: trl`",
        )


def _refuse_on_cpu(config: RunConfig) -> None:
    """Refuse what Unsloth's CPU backend would change in silence.

    Raises:
        ConfigurationError: packing, padding-free training, 8-bit weights, an 8-bit optimizer or vLLM.
    """
    refused = {
        "generation.use_vllm": uses_vllm(config),
        "task.packing": getattr(config.algorithm, "packing", False),
        "task.padding_free": getattr(config.algorithm, "padding_free", False),
        "model.quantization": config.model.quantization == "8bit",
        "train.optimizer": "8bit" in config.train.optimizer,
    }
    for key, hit in refused.items():
        if hit:
            raise ConfigurationError(
                f"{key} has no effect on Unsloth's CPU backend, which would ignore it without a word",
                hint=f"change {key}, set `backend: trl`, or run on a GPU",
            )
