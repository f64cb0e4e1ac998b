"""A sequence classifier with one output as a reward: `reward_model`.

    rewards: [{type: reward_model, params: {path: out/reward-model}}, {type: length, weight: 0.1}]

The score of an answer is the model's one logit for the prompt and the answer together, as the Bradley-Terry model of
preferences reads it (Ouyang et al. 2022, arXiv:2203.02155, section 3.5): r(x, y) has no bounds, and only differences
within a prompt have a meaning. A conversation is written with the reward model's own chat template and tokenized by
its own tokenizer, so that policy and reward model may be of different families.

Source of the input's form: TRL's `RewardTrainer` and `GRPOTrainer` (1.14.2). It does not train reward models, and
takes no classifier with several labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from aligntune.errors import ConfigurationError, RewardError, ValidationError
from aligntune.registry import nearest
from aligntune.rewards.base import REWARDS, RewardFunction, Score, count

PARAMETERS = ("path", "revision", "batch_size", "max_length", "precision", "trust_remote_code")
PRECISIONS = Literal["auto", "fp32", "bf16", "fp16"]


class RewardModelReward(RewardFunction):
    """The logit of a sequence classifier with one output, for the prompt and the answer together.

    The weights are read at the first use, from safetensors files only, and stand on the run's device in evaluation
    mode; scoring takes no gradient. A text longer than `max_length` is cut at its end, and counted (`truncated`).

    Args:
        path: a folder or hub id; an adapter folder over a base works too.
        revision: branch, tag or commit of the hub repository.
        batch_size: texts per forward pass; texts of similar length go together.
        max_length: most tokens of prompt and answer; None takes what the model was made for.
        precision: of the weights; auto is bf16 on a GPU that has it, fp16 on an older one, fp32 on the CPU.
        trust_remote_code: run Python code from the model's repository. Only for code that you have read.

    Raises:
        ConfigurationError: no path, an unknown parameter, a value out of range, a model that is no classifier with
            one output, or a tokenizer without a chat template where the prompts are conversations.
    """

    name = "reward_model"
    kind = "model"
    columns = frozenset({"prompt"})
    deadline = None

    def __init__(
        self,
        path: str | None = None,
        *,
        revision: str | None = None,
        batch_size: int = 8,
        max_length: int | None = None,
        precision: PRECISIONS = "auto",
        trust_remote_code: bool = False,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise ConfigurationError(
                f"reward 'reward_model' has no parameter '{next(iter(unknown))}'",
                hint=nearest(next(iter(unknown)), PARAMETERS),
            )
        if not isinstance(path, str) or not path:
            raise ConfigurationError(
                "reward 'reward_model' needs the path of a model", hint="params: {path: <folder or hub id>}"
            )
        for name, number in (("batch_size", batch_size), ("max_length", max_length)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ConfigurationError(
                    f"reward 'reward_model': {name} is {number!r}", hint=f"set {name} to an integer of at least 1"
                )
        if precision not in get_args(PRECISIONS):
            raise ConfigurationError(
                f"reward 'reward_model': precision is {precision!r}", hint=f"one of {', '.join(get_args(PRECISIONS))}"
            )
        self.path, self.revision, self.batch_size, self.max_length = path, revision, batch_size, max_length
        self.precision, self.trust_remote_code, self.device = precision, trust_remote_code, "auto"
        given = {
            "path": path,
            "revision": revision,
            "batch_size": batch_size,
            "max_length": max_length,
            "precision": precision,
            "trust_remote_code": trust_remote_code,
        }
        self.params = given
        self._loaded: Any = None

    @property
    def source(self) -> str:
        """The model's name and revision; for a folder, a hash of its weights files."""
        from aligntune.utils.manifest import file_sha256

        folder = Path(self.path).expanduser()
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        return "\n".join([f"{self.path}@{self.revision or 'main'}", *(f"{f.name} {file_sha256(f)}" for f in files)])

    def place(self, device: str) -> None:
        """Score on `device` ("auto", "cpu", "cuda" or "mps"); loaded weights move there at the next use."""
        if device != self.device:
            self.device, self._loaded = device, None

    def compute(self, text: str, **kwargs: Any) -> float | None:
        """The logit of one answer; `prompt` is its prompt, text or messages."""
        if kwargs.get("prompt") is None:
            raise ConfigurationError(
                "scores an answer together with its prompt, and gets none", hint="pass prompt=... (text or messages)"
            )
        return self.logits([text], [kwargs["prompt"]])[0]

    def batch(
        self,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        failures: list[RewardError] | None = None,
    ) -> list[Score]:
        if not texts:
            return []
        prompts = list((columns or {}).get("prompt", []))
        if len(prompts) != len(texts):
            first = {"prompt": prompts[0]} if prompts else {}
            raise self._error("scores an answer together with its prompt, and gets none", 0, first)
        self._load()  # outside the deadline, and its errors say themselves what is wrong
        return self.together(lambda: self.logits(texts, prompts), len(texts), {"prompt": prompts}, failures)

    def logits(self, texts: Sequence[str], prompts: Sequence[Any]) -> list[float]:
        """One logit for each answer, in order.

        Args:
            texts: N answers.
            prompts: N prompts, text or message lists.
        """
        import torch

        model, tokenizer, limit = self._load()
        rows = [self._ids(tokenizer, p, t, limit) for p, t in zip(prompts, texts, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = [0.0] * len(rows)
        device = next(model.parameters()).device
        with torch.no_grad():
            for start in range(0, len(order), self.batch_size):
                part = order[start : start + self.batch_size]
                width = max(len(rows[i]) for i in part)
                pad = tokenizer.pad_token_id
                ids = torch.tensor([rows[i] + [pad] * (width - len(rows[i])) for i in part], device=device)
                mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in part], device=device)
                values = model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
                for i, value in zip(part, values, strict=True):
                    found[i] = value
        return found

    def _ids(self, tokenizer: Any, prompt: Any, text: str, limit: int | None) -> list[int]:
        text = text.encode("utf-8", "replace").decode()  # a lone surrogate, which no tokenizer takes
        if isinstance(prompt, str):
            ids: list[int] = tokenizer(prompt + text)["input_ids"]
        else:
            if not tokenizer.chat_template:
                raise ConfigurationError(
                    f"cannot read conversations: {self.path} is a reward model whose tokenizer has no chat template",
                    hint="save the tokenizer with the template that the reward model was trained with "
                    "(tokenizer.chat_template), or use plain-text prompts",
                )
            messages = [*prompt, {"role": "assistant", "content": text}]
            written = tokenizer.apply_chat_template(messages, tokenize=False)
            ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        if limit is not None and len(ids) > limit:
            count("truncated")
            ids = ids[:limit]
        return ids or [tokenizer.pad_token_id]

    def _load(self) -> Any:
        if self._loaded is None:
            from aligntune.utils.device import DeviceManager

            device = DeviceManager(self.device)
            model, tokenizer = load_classifier(
                self.path, self.revision, device.precision(self.precision), self.trust_remote_code
            )
            made_for = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            limit = self.max_length or (made_for if isinstance(made_for, int) and made_for > 0 else None)
            self._loaded = (model.to(device.device).eval().requires_grad_(False), tokenizer, limit)
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_loaded": None}


def load_classifier(path: str, revision: str | None, precision: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """A sequence classifier with one output, and its tokenizer, padding on the right.

    Args:
        path: a folder or hub id; an adapter folder over a base works too.
        revision: branch, tag or commit; None is the main branch.
        precision: "fp32", "bf16" or "fp16".
        trust_remote_code: run Python code from its repository.

    Raises:
        ConfigurationError: no such folder, or weights that are not in safetensors files.
        ValidationError: weights of the head are missing (a causal model), or it has several outputs.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from aligntune.core.config.sections import ModelConfig
    from aligntune.utils.model_loader import _library_faults as library_faults
    from aligntune.utils.model_source import faults_of, find_source
    from aligntune.utils.tokenizer import prepare_tokenizer

    with faults_of("reward_model"):
        source = find_source(path, revision)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    own = {"revision": revision} if revision is not None else {}
    with library_faults(source):
        tokenizer = AutoTokenizer.from_pretrained(source.tokenizer, trust_remote_code=trust_remote_code, **own)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source.base,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **({"num_labels": 1} if source.adapter else own),  # an adapter brings its own head
        )
        missing = set(info["missing_keys"])
        if source.adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, source.adapter)
            kept = model.peft_config["default"].modules_to_save or []
            missing = {key for key in missing if not any(part in kept for part in key.split("."))}
    if missing:
        raise ValidationError(
            f"{path} is no sequence classifier: it has no weights for {', '.join(sorted(missing)[:3])}",
            hint="give a reward model (a sequence classifier with one output), not a causal language model",
        )
    if model.config.num_labels != 1:
        raise ValidationError(
            f"{path} has {model.config.num_labels} outputs, and a reward model has one",
            hint="give a sequence classifier with num_labels = 1",
        )
    prepare_tokenizer(tokenizer, ModelConfig(name_or_path=path), training=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


REWARDS.add(RewardModelReward.name, RewardModelReward)
