"""What all scorers by a local model share: where the weights are, reading them, placing them, batches by length.

    class Lengths(LocalModel):
        auto = "AutoModel"

`LocalModel` reads nothing until it is asked; a model stands on one device, in evaluation mode, without gradients. Texts
of similar length go through it together, padded on the right and masked, so that in fp32 a score does not depend on its
neighbours beyond rounding (1e-5). Two scorers that name one model hold it twice; give rewards the same scorer where
memory is short.

It does not quantise, and does not spread a model over several devices.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.rewards.base import count

Precision = Literal["auto", "fp32", "bf16", "fp16"]
CHARACTERS_PER_TOKEN = 64
"""A text of more characters than this times the greatest number of tokens is cut before it is tokenized: no text of any
language has so few tokens, and megabytes of noise would cost seconds."""


class LocalModel:
    """A model that is read at its first use.

    Args:
        path: a folder or hub id; an adapter folder over a base works too.
        revision: branch, tag or commit of the hub repository.
        batch_size: texts per forward pass.
        max_length: most tokens of a text; None takes what model and tokenizer were made for.
        precision: of the weights; auto is bf16 on a GPU that has it, fp16 on an older one, fp32 on the CPU.
        device: "auto", "cpu", "cuda" or "mps"; see `place`.
        trust_remote_code: run Python code from the model's repository. Only for code that you have read.

    Raises:
        ConfigurationError: a value out of range. Reading the model raises it where there is no such folder or it has
            no safetensors weights, and `ValidationError` where it is no model of the wanted kind.
    """

    auto: ClassVar[str] = "AutoModel"
    """The class of Transformers that reads it."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Parts of a weight's name that may be missing, because no score depends on them."""
    what: ClassVar[str] = "model"
    """What it is called in messages."""

    def __init__(
        self,
        path: str,
        *,
        revision: str | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        precision: Precision = "auto",
        device: str = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        if not isinstance(path, str) or not path:
            raise ConfigurationError(f"a {self.what} needs the path of a model", hint="path: <folder or hub id>")
        for name, number in (("batch_size", batch_size), ("max_length", max_length)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ConfigurationError(f"{name} is {number!r}", hint=f"set {name} to an integer of at least 1")
        if precision not in get_args(Precision):
            raise ConfigurationError(
                f"precision is {precision!r}", hint=f"one of {', '.join(map(str, get_args(Precision)))}"
            )
        self.path, self.revision, self.batch_size, self.max_length = path, revision, batch_size, max_length
        self.precision, self.device, self.trust_remote_code = precision, device, trust_remote_code
        self._loaded: Any = None
        self._lock = threading.RLock()

    @property
    def source(self) -> str:
        """The model's name and revision; for a folder, a hash of each of its weights files."""
        from aligntune.utils.manifest import file_sha256

        folder = Path(self.path).expanduser()
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        return "\n".join([f"{self.path}@{self.revision or 'main'}", *(f"{f.name} {file_sha256(f)}" for f in files)])

    def place(self, device: str) -> None:
        """Compute on `device` ("auto", "cpu", "cuda", "mps") from the next use on."""
        with self._lock:
            if device != self.device:
                self.device, self._loaded = device, None

    def load(self) -> tuple[Any, Any, int | None]:
        """The model, its tokenizer and the most tokens of a text, read once.

        Raises:
            ConfigurationError: no such folder, no safetensors weights, or code from the repository that is not allowed.
            EnvironmentError: the hub does not give it, or the device is not there.
            ValidationError: weights are missing or damaged, or it is no model of this kind.
        """
        with self._lock:
            if self._loaded is None:
                from aligntune.utils.device import DeviceManager

                device = DeviceManager(self.device)
                model, tokenizer = self.read(device.precision(self.precision))
                limit = self.max_length or self._limit(model, tokenizer)
                self._loaded = (model.to(device.device).eval().requires_grad_(False), tokenizer, limit)
            loaded: tuple[Any, Any, int | None] = self._loaded
            return loaded

    def _options(self) -> dict[str, Any]:
        """Further arguments for `from_pretrained`."""
        return {}

    def _check(self, model: Any) -> None:
        """Raise `ValidationError` where the model that was read is not of this kind."""

    def _refuse(self, missing: list[str]) -> ValidationError:
        """The error for weights that are missing."""
        return ValidationError(
            f"{self.path} is no {self.what}: it has no weights for {', '.join(missing[:3])}",
            hint=f"give a trained {self.what}; missing weights would be random numbers",
        )

    def read(self, precision: str) -> tuple[Any, Any]:
        """The model, on the CPU, and its tokenizer, in a precision ("fp32", "bf16", "fp16"); see `load` for errors."""
        import torch
        import transformers

        from aligntune.core.config.sections import ModelConfig
        from aligntune.utils.model_loader import library_faults
        from aligntune.utils.model_source import faults_of, find_source
        from aligntune.utils.tokenizer import prepare_tokenizer

        with faults_of(f"{self.what}"):
            source = find_source(self.path, self.revision)
        own = {"revision": self.revision} if self.revision is not None else {}
        with library_faults(source), faults_of(f"{self.what}"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source.tokenizer, trust_remote_code=self.trust_remote_code, **own
            )
            model, info = getattr(transformers, self.auto).from_pretrained(
                source.base,
                dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision],
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                **({} if source.adapter else own),
                **(self._adapter_options() if source.adapter else self._options()),
            )
            missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
            if source.adapter is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, source.adapter)
                kept = model.peft_config["default"].modules_to_save or []
                missing = {key for key in missing if not any(part in kept for part in key.split("."))}
        wanted = sorted(key for key in missing if not any(part in f".{key}" for part in self.unused))
        if wanted:
            raise self._refuse(wanted)
        self._check(model)
        prepare_tokenizer(tokenizer, ModelConfig(name_or_path=self.path), training=True, writes=False)
        model.config.pad_token_id = tokenizer.pad_token_id
        return model, tokenizer

    def _adapter_options(self) -> dict[str, Any]:
        """Further arguments for the base of an adapter, whose own head the adapter brings."""
        return self._options()

    def _limit(self, model: Any, tokenizer: Any) -> int | None:
        """The most tokens that both the model's positions and its tokenizer allow."""
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        limits = [positions] if isinstance(positions, int) and positions > 0 else []
        for name, module in model.named_modules():
            rows = getattr(module, "padding_idx", None)
            if limits and name.endswith("position_embeddings") and rows is not None:
                limits[0] = positions - rows - 1  # RoBERTa's positions begin behind that of the padding
        stated = getattr(tokenizer, "model_max_length", None)
        if isinstance(stated, int) and 0 < stated < 1_000_000:  # Transformers' mark for "not stated" is 1e30
            limits.append(stated)
        return min(limits) if limits else None

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, list[int]]]:
        """Token ids (and token types, where the model has them) of each text, special tokens and all.

        A text beyond the limit is cut at its end (of a pair, the longer part), and counted as `truncated`. Lone
        surrogates, which no tokenizer takes, become question marks.
        """
        model, tokenizer, limit = self.load()
        names = ["input_ids"]
        whole = getattr(model, "get_base_model", lambda: model)()
        if "token_type_ids" in inspect.signature(whole.forward).parameters:
            names.append("token_type_ids")
        found = []
        for i, text in enumerate(texts):
            given = [text] if pairs is None else [text, pairs[i]]
            parts = [_clean(part, limit) for part in given]
            # A special token that stands in a text as words is words: it must not end, pad or part anything.
            options = {"split_special_tokens": True, "return_token_type_ids": len(names) > 1}
            row = tokenizer(*parts, verbose=False, **options)
            cut = limit is not None and len(row["input_ids"]) > limit
            if cut:
                row = tokenizer(*parts, truncation="longest_first", max_length=limit, **options)
            if cut or any(len(part) != len(own) for part, own in zip(parts, given, strict=True)):
                count("truncated")
            kept = {name: list(row[name]) for name in names if name in row}
            found.append(
                kept if kept["input_ids"] else {name: [tokenizer.pad_token_id * (name == names[0])] for name in kept}
            )
        return found

    def batches(self, rows: Sequence[dict[str, list[int]]], size: int | None = None) -> Iterator[tuple[list[int], Any]]:
        """Rows of similar length together: their places in `rows`, and the padded tensors [B, T] on the device."""
        import torch

        model, tokenizer, _ = self.load()
        device = next(model.parameters()).device
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        step = size or self.batch_size
        for start in range(0, len(order), step):
            part = order[start : start + step]
            width = max(len(rows[i]["input_ids"]) for i in part)
            pads = {"input_ids": tokenizer.pad_token_id, "token_type_ids": 0}

            def padded(name: str, part: list[int] = part, width: int = width, pads: dict[str, int] = pads) -> Any:
                lists = [rows[i][name] + [pads[name]] * (width - len(rows[i][name])) for i in part]
                return torch.tensor(lists, device=device)

            tensors = {name: padded(name) for name in rows[part[0]]}
            lengths = torch.tensor([[len(rows[i]["input_ids"])] for i in part], device=device)
            tensors["attention_mask"] = (torch.arange(width, device=device)[None, :] < lengths).long()
            yield part, tensors

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_loaded", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._loaded, self._lock = None, threading.RLock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"


def _clean(text: str, limit: int | None) -> str:
    """The text with lone surrogates replaced (one character each), cut where it is far beyond `limit` tokens."""
    kept = text if limit is None else text[: limit * CHARACTERS_PER_TOKEN]
    return kept.encode("utf-8", "replace").decode()
