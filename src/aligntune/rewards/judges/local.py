"""A judge in this process: a Transformers causal language model with its chat template, `LocalJudge`.

    judge = LocalJudge(JudgeConfig(kind="local", model="Qwen/Qwen3-4B", batch_size=16))

Weights are read at the first question, from safetensors files, and stand on the run's device beside the policy. Answers
are generated in batches by `aligntune.eval.generation`, greedily unless a temperature is set. Texts in the messages
cannot end a turn: what the tokenizer takes for one of its special tokens is broken up by a space. A question that does
not fit the model's context is a failure of that question alone.

It does not call tools, and a generation cannot be interrupted: its length is bounded by `max_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.errors import ValidationError
from aligntune.rewards.judges.base import Failure, Judge, Messages, make_judge
from aligntune.rewards.judges.cache import AnswerCache

if TYPE_CHECKING:
    from aligntune.core.config.sections import JudgeConfig

SEED = 0
"""Of the sampling, where a temperature is set."""


class LocalJudge(Judge):
    """See this module.

    Args:
        config: the section, with `kind: local`.
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.name = config.model
        self._device = "auto"
        self._loaded: Any = None
        self._cache = AnswerCache(config.cache) if config.cache is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return make_judge, (self.config,)

    def identity(self) -> dict[str, Any]:
        """Model, weights (by the size and time of their files) and sampling parameters."""
        c = self.config
        folder = Path(c.model).expanduser()
        files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.glob("*.safetensors"))]
        own = {"temperature": c.temperature, "max_tokens": c.max_tokens, "precision": c.precision}
        return {"kind": "local", "model": c.model, "revision": c.revision, "files": files, **own}

    def place(self, device: str) -> None:
        """Compute on `device` ("auto", "cpu", "cuda", "mps") from the next question on."""
        with self._lock:
            if device != self._device:
                self._device, self._loaded = device, None

    def check(self) -> None:
        """Read the model.

        Raises:
            ConfigurationError, EnvironmentError: there is no such model, or no such device.
            ValidationError: weights are missing, or its tokenizer has no chat template.
        """
        self._load()

    def _load(self) -> tuple[Any, Any]:
        with self._lock:
            if self._loaded is None:
                from aligntune.core.config.sections import ModelConfig
                from aligntune.utils.model_loader import ModelLoader

                c = self.config
                section = ModelConfig(
                    name_or_path=c.model,
                    revision=c.revision,
                    precision=c.precision,
                    device=self._device,  # type: ignore[arg-type]
                    trust_remote_code=c.trust_remote_code,
                )
                loaded = ModelLoader(section, training=False, seed=SEED).load()
                if not loaded.tokenizer.chat_template:
                    raise ValidationError(
                        f"the judge {c.model} cannot be asked: its tokenizer has no chat template",
                        hint="give an instruction-tuned model",
                    )
                self._loaded = loaded.model, loaded.tokenizer
            model, tokenizer = self._loaded
            return model, tokenizer

    def _answer(self, requests: Sequence[Messages], settle: Callable[[int, str | Failure], None]) -> None:
        from aligntune.eval.generation import context_length, encode_prompts, generate_answers

        if not requests:
            return
        c = self.config
        model, tokenizer = self._load()
        special = [t for t in {*tokenizer.all_special_tokens, *_control_tokens(tokenizer)} if len(t) > 1]
        asked = [_fitted(tokenizer, _disarmed(messages, special)) for messages in requests]
        limit = context_length(model)
        lengths = [len(ids) for ids in encode_prompts(tokenizer, asked)]
        fits = [i for i, n in enumerate(lengths) if limit is None or n + c.max_tokens <= limit]
        for start in range(0, len(fits), c.batch_size):
            part = fits[start : start + c.batch_size]
            found = generate_answers(
                model,
                tokenizer,
                [asked[i] for i in part],
                max_new_tokens=c.max_tokens,
                temperature=c.temperature,
                batch_size=c.batch_size,
                seed=SEED,
            )
            for i, answers in zip(part, found, strict=True):
                self.usage.requests += 1
                self.usage.tokens_in += lengths[i]
                self.usage.tokens_out += answers[0].tokens
                settle(i, answers[0].text)
        for i in sorted(set(range(len(requests))) - set(fits)):
            settle(i, Failure("too_long", f"{lengths[i]} tokens and {c.max_tokens} for the answer do not fit {limit}"))


def _control_tokens(tokenizer: Any) -> list[str]:
    """Texts that the tokenizer turns into one token of its own: special ones, and added ones that are no words."""
    return [token for token in tokenizer.get_added_vocab() if not token.isalnum()]


def _disarmed(messages: Messages, special: Sequence[str]) -> Messages:
    """The messages with every special token's text broken up by a space behind its first character."""
    broken = []
    for message in messages:
        text = str(message["content"])
        for token in sorted(special, key=len, reverse=True):
            if token.strip():
                text = text.replace(token, f"{token[0]} {token[1:]}")
        broken.append({**message, "content": text})
    return broken


def _fitted(tokenizer: Any, messages: Messages) -> Messages:
    """The messages as the chat template takes them: where it knows no system turn, that stands in the user's."""
    from jinja2 import TemplateError

    try:
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
        rest = [m for m in messages if m["role"] != "system"]
        if not system or not rest:
            raise
        return [{**rest[0], "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
    return messages
