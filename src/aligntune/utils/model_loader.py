"""Load a causal language model and its tokenizer as a `ModelConfig` says, and tell what was decided on the
way.

>>> loaded = ModelLoader(config.model, training=True, seed=42).load()
>>> loaded.path, loaded.notes
('out/sft', ["the tokenizer has no padding token: '<pad>' from its vocabulary pads"])

Source of the precision rule: mixed precision keeps the trained weights in fp32 (Micikevicius et al. 2018,
arXiv:1710.03740); frozen weights under LoRA may stand in the training precision (Dettmers et al. 2023,
arXiv:2305.14314). Weights are read from safetensors files only, because unpickling runs code.

It does not place a training model on its device (the trainer does), and does not load Unsloth models.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from aligntune import errors
from aligntune.core.config.sections import ModelConfig
from aligntune.utils.device import DeviceManager
from aligntune.utils.model_source import Source, find_source
from aligntune.utils.quantization import check_quantization, settle_quantized
from aligntune.utils.tokenizer import prepare_tokenizer

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer.

    Attributes:
        model: a Transformers model, or a PEFT model around one.
        tokenizer: ready to pad.
        path: the folder or hub id that the weights came from, adapter folders included. TRL loads the
            reference model from the base's path again, so it must be the true one.
        notes: one sentence for each thing that was decided or found.
    """

    model: Any
    tokenizer: Any
    path: str
    notes: list[str] = field(default_factory=list)


class ModelLoader:
    """Load what a `ModelConfig` describes.

    Args:
        config: the section.
        training: True for a model to train (fp32 weights, right padding, adapters made), False for one to run
            (weights in the run's precision, left padding, on the device, in eval mode).
        seed: seed of new adapter weights; `load` sets PyTorch's generators with it.
        gradient_checkpointing: recompute activations in the backward pass.
    """

    def __init__(self, config: ModelConfig, *, training: bool, seed: int, gradient_checkpointing: bool = False) -> None:
        self.config = config
        self.training = training
        self.seed = seed
        self.gradient_checkpointing = gradient_checkpointing

    @cached_property
    def device(self) -> DeviceManager:
        """The device that the configuration asks for."""
        return DeviceManager(self.config.device)

    @cached_property
    def source(self) -> Source:
        """Where the weights are; see `model_source.find_source` for what is refused."""
        return find_source(self.config.name_or_path, self.config.revision)

    def load(self) -> Loaded:
        """Read the tokenizer and the weights, wrap adapters, and return both.

        Raises:
            errors.ConfigurationError: no such folder; pickled weights only; remote code that is not allowed;
                an
                adapter folder to train without `model.peft`.
            errors.EnvironmentError: the hub cannot be reached or refuses; quantisation or an attention kernel
                lacks its package or its GPU.
            errors.ValidationError: weights are missing, damaged, or too small for the tokenizer.
        """
        tokenizer, notes = self._tokenizer()
        self._check_adapter_use()
        model = self._load_base()
        _check_vocabulary(model, tokenizer, self.source)
        notes += self._wrap_notes() + _repair_generation_config(model) + self._length_notes(model)
        model = self._wrap(model)
        for settings in (model.config, getattr(model, "generation_config", None)):
            if settings is not None:  # a classifier has no generation config
                settings.pad_token_id = tokenizer.pad_token_id
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.config.peft is not None:
                model.enable_input_require_grads()
        if not self.training:
            model = model if self.config.quantization else model.to(self.device.device)
            model.eval()
        return Loaded(model=model, tokenizer=tokenizer, path=self.source.path, notes=notes)

    def load_tokenizer(self) -> Any:
        """The tokenizer alone, ready to pad, without reading weights."""
        return self._tokenizer()[0]

    def model_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`, without reading anything from disk.

        Raises:
            errors.EnvironmentError: quantisation or the attention kernel lacks its package or its GPU.
        """
        kwargs: dict[str, Any] = {
            "dtype": self._dtype(),
            "trust_remote_code": self.config.trust_remote_code,
            "use_safetensors": True,
        }
        if self.config.revision is not None:
            kwargs["revision"] = self.config.revision
        if self.config.attn_implementation is not None:
            self._check_attention()
            kwargs["attn_implementation"] = self.config.attn_implementation
        if self.config.quantization is not None:
            self._check_quantization()
            kwargs["quantization_config"] = self._quantization_config()
            # Each process of a distributed run holds the whole model on its own GPU.
            place = int(os.environ.get("LOCAL_RANK", "0")) if self.device.device == "cuda" else "cpu"
            kwargs["device_map"] = {"": place}
        return kwargs

    def lora_config(self) -> Any:
        """`peft.LoraConfig` of `model.peft`; None where the section is not set."""
        peft = self.config.peft
        if peft is None:
            return None
        from peft import LoraConfig, TaskType

        return LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=peft.r,
            lora_alpha=peft.alpha,
            lora_dropout=peft.dropout,
            target_modules=peft.target_modules,
            modules_to_save=peft.modules_to_save,
            use_rslora=peft.use_rslora,
            use_dora=peft.use_dora,
            bias="none",
        )

    def _dtype(self) -> str:
        """Name of the weights' dtype: fp32 for weights that are trained, the run's precision for frozen
        ones.
        """
        precision = self.device.precision(self.config.precision)
        return _DTYPES["fp32" if self.training and self.config.peft is None else precision]

    def _tokenizer(self) -> tuple[Any, list[str]]:
        from transformers import AutoTokenizer

        with library_faults(self.source):
            tokenizer = AutoTokenizer.from_pretrained(
                self.source.tokenizer,
                revision=self.config.revision,
                trust_remote_code=self.config.trust_remote_code,
            )
        return tokenizer, prepare_tokenizer(tokenizer, self.config, training=self.training)

    def _load_base(self) -> Any:
        kwargs = self.model_kwargs()
        if self.source.adapter is not None:
            kwargs.pop("revision", None)  # it names a revision of the adapter, not of its base
        with library_faults(self.source):
            model, info = self._auto_class().from_pretrained(self.source.base, output_loading_info=True, **kwargs)
        missing = self._missing(model, info)
        if missing:
            raise errors.ValidationError(
                f"{self.source.base} lacks weights of {type(model).__name__}: {', '.join(missing[:5])}"
                + (f" and {len(missing) - 5} more" if len(missing) > 5 else ""),
                hint="they would be random numbers; use a complete causal language model",
                context={"missing": missing},
            )
        if self.config.quantization is not None:
            settle_quantized(model, self.config.quantization)
        return model

    def _auto_class(self) -> Any:
        """The class that makes the model."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def _missing(self, model: Any, info: dict[str, Any]) -> list[str]:
        """Names of weights that must not be missing and are."""
        return sorted(info["missing_keys"])

    def _wrap(self, model: Any) -> Any:
        """The model with its adapter: a stored one, a new one, or none."""
        if self.source.adapter is None and self.config.peft is None:
            return model
        if self.source.adapter is None and not self.training:
            return model  # `peft` describes training; a base model to run has no adapter
        import torch
        from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training

        torch.manual_seed(self.seed)
        if self.config.quantization is not None and self.training:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=self.gradient_checkpointing)
        if self.source.adapter is not None:
            return PeftModel.from_pretrained(model, self.source.adapter, is_trainable=self.training)
        return get_peft_model(model, self.lora_config())

    def _wrap_notes(self) -> list[str]:
        notes: list[str] = []
        if self.source.adapter is not None:
            doing = "training goes on with" if self.training else "runs with"
            notes.append(f"{doing} the adapter in {self.source.adapter} over {self.source.base}")
        return notes

    def _length_notes(self, model: Any) -> list[str]:
        positions = getattr(model.config, "max_position_embeddings", None)
        if not isinstance(positions, int) or self.config.max_seq_length <= positions:
            return []
        return [
            f"model.max_seq_length is {self.config.max_seq_length}, and the model was made for {positions} "
            "positions: longer rows are beyond what it has learned"
        ]

    def _check_adapter_use(self) -> None:
        """Refuse to train a stored adapter without `model.peft`, or with another shape than it has."""
        if self.source.adapter is None or not self.training:
            return
        peft = self.config.peft
        if peft is None:
            raise errors.ConfigurationError(
                f"{self.source.adapter} is a LoRA adapter, and model.peft is not set",
                hint="set model.peft to go on training the adapter, or merge it into its base model first",
            )
        stored = json.loads((Path(self.source.adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        given = {
            "r": peft.r,
            "lora_alpha": peft.alpha,
            "use_rslora": peft.use_rslora,
            "use_dora": peft.use_dora,
        }
        wrong = {key: value for key, value in given.items() if stored.get(key, value) != value}
        if wrong:
            shown = ", ".join(f"{key} {stored[key]:g} (model.peft: {value:g})" for key, value in wrong.items())
            raise errors.ConfigurationError(
                f"the adapter in {self.source.adapter} has {shown}",
                hint="an adapter keeps its shape: give model.peft the same values",
            )

    def _check_quantization(self) -> None:
        wanted = f"model.quantization is '{self.config.quantization}'"
        if self.training and self.config.peft is None:
            raise errors.ConfigurationError(
                f"{wanted}, and quantised weights cannot be trained themselves",
                hint="set model.peft to train LoRA adapters over them, or drop model.quantization",
            )
        check_quantization(str(self.config.quantization), self.device.device, self.device.name)
        dora = self.config.peft is not None and self.config.peft.use_dora
        if dora and self.config.quantization == "8bit" and self.device.device == "cpu":
            raise errors.EnvironmentError(
                f"{wanted}, over which model.peft.use_dora fails on the CPU (bitsandbytes drops the scales it needs)",
                hint="set model.quantization to 4bit, or drop model.peft.use_dora",
            )

    def _quantization_config(self) -> Any:
        import torch
        from transformers import BitsAndBytesConfig

        if self.config.quantization == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, _DTYPES[self.device.precision(self.config.precision)]),
        )

    def _check_attention(self) -> None:
        if self.config.attn_implementation != "flash_attention_2":
            return
        if self.device.device != "cuda" or importlib.util.find_spec("flash_attn") is None:
            lack = "a CUDA GPU" if self.device.device != "cuda" else "the flash-attn package"
            raise errors.EnvironmentError(
                f"model.attn_implementation is 'flash_attention_2', which needs {lack}",
                hint="set model.attn_implementation to sdpa, or install what is missing",
            )


@contextmanager
def library_faults(source: Source) -> Iterator[None]:
    """Say what the libraries raise while they read a model in our own errors, with the way out."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise errors.ValidationError(
            f"a weights file of {source.path} is damaged ({error})", hint="copy or download the model again"
        ) from error
    except errors.AlignTuneError:
        raise
    except OSError as error:
        raise source.unreadable(error) from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise errors.ConfigurationError(
                f"{source.path} needs Python code from its repository, and model.trust_remote_code is false",
                hint="read that code first; if you trust it, set model.trust_remote_code to true",
            ) from error
        raise errors.ValidationError(f"{source.path} cannot be loaded: {error}", hint=source.advice) from error


def _check_vocabulary(model: Any, tokenizer: Any, source: Source) -> None:
    """Refuse a tokenizer with ids beyond the embedding matrix: they would fail in the first forward pass."""
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=0)
    if source.adapter is None and largest >= rows:
        raise errors.ValidationError(
            f"the tokenizer of {source.path} has ids up to {largest}, and the model has {rows} embeddings",
            hint="use the tokenizer that belongs to the model",
        )


def _repair_generation_config(model: Any) -> list[str]:
    """Make a stored generation config that contradicts itself one that can be saved again; say so.

    Some published models set a temperature while `do_sample` is false, and Transformers then refuses to save
    the trained model, which would lose it at the end of the run.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return []
    try:
        config.validate(strict=True)
        return []
    except ValueError:
        config.do_sample = True
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise errors.ValidationError(
            f"the model's generation_config.json contradicts itself, so the model cannot be saved: {error}",
            hint="mend or remove that file in the model's folder",
        ) from error
    return ["the model's generation config has sampling settings and do_sample=False: set to True, to be saved"]
