"""Ready a tokenizer for training or generation: padding side, padding token, chat template. Each change is
told.

Source of the rules: causal models are padded on the right in training and on the left in generation, where
the last position must be a token of the prompt (Transformers); a tokenizer without a padding token is given
an unused one that its vocabulary has, and its end-of-sequence token otherwise (TRL does the latter).

>>> notes = prepare_tokenizer(tokenizer, config.model, training=True)
>>> notes
["the tokenizer has no padding token: '</s>' (end of sequence) pads"]

It adds no token to the vocabulary, so that the embedding matrix keeps its size.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from aligntune.core.config.sections import ModelConfig
from aligntune.errors import ConfigurationError, ValidationError

# Transformers' own tag around the assistant's words; plain Jinja does not know it.
_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")

PAD_LIKE = (
    "<|finetune_right_pad_id|>",
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<PAD>",
    "<|padding|>",
    "<|endoftext|>",
)
"""Tokens that model families reserve for padding (Llama 3.x, Gemma and T5, BERT, Granite, Yi, Pythia, Qwen),
in order.
"""


def prepare_tokenizer(tokenizer: Any, config: ModelConfig, *, training: bool, writes: bool = True) -> list[str]:
    """Set padding side, padding token and chat template in place; return one sentence per change or lack.

    Args:
        tokenizer: a Transformers tokenizer.
        config: the model section.
        training: whether batches are trained on.
        writes: whether the model writes text; a classifier needs neither chat template nor end of sequence.

    Raises:
        ConfigurationError: `chat_template` is the path of no file, or no valid Jinja.
        ValidationError: the tokenizer has neither a padding, an unknown nor an end-of-sequence token.
    """
    notes: list[str] = []
    tokenizer.padding_side = "right" if training else "left"
    if config.chat_template is not None:
        tokenizer.chat_template = read_template(config.chat_template)
        notes.append("model.chat_template replaces the tokenizer's own chat template")
    elif writes and not tokenizer.chat_template:
        notes.append("the tokenizer has no chat template: conversations become plain text, as stated for each data set")
    if tokenizer.pad_token is None:
        notes.append(_choose_pad(tokenizer))
    if writes and tokenizer.eos_token is None:
        notes.append("the tokenizer has no end-of-sequence token: answers end at the length limit only")
    return notes


def _choose_pad(tokenizer: Any) -> str:
    """Set a padding token and say which."""
    vocabulary = tokenizer.get_vocab()
    reserved = next((t for t in PAD_LIKE if t in vocabulary and t != tokenizer.eos_token), None)
    unknown = tokenizer.unk_token if tokenizer.unk_token != tokenizer.eos_token else None
    if reserved or unknown:
        tokenizer.pad_token = reserved or unknown
        return f"the tokenizer has no padding token: '{tokenizer.pad_token}' from its vocabulary pads"
    if tokenizer.eos_token is None:
        raise ValidationError(
            "the tokenizer has no padding, unknown or end-of-sequence token, so batches cannot be padded",
            hint="add an eos_token to the model folder's tokenizer_config.json",
        )
    tokenizer.pad_token = tokenizer.eos_token
    return f"the tokenizer has no padding token: '{tokenizer.pad_token}' (end of sequence) pads"


def read_template(value: str) -> str:
    """A chat template given inline or as a path, checked to be valid Jinja.

    A value without `{` and line break is a path.

    Raises:
        ConfigurationError: there is no such file, or the template does not parse (its line is named).
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    where = "model.chat_template"
    if "{" not in value and "\n" not in value:
        path = Path(value).expanduser()
        if not path.is_file():
            raise ConfigurationError(
                f"{where} is '{value}', and there is no such file",
                hint="give the path of a Jinja file, or the template itself",
            )
        where, value = str(path), path.read_text(encoding="utf-8")
    try:
        environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
        environment.parse(_GENERATION_TAG.sub("", value))
    except jinja2.TemplateSyntaxError as error:
        raise ConfigurationError(
            f"{where}, line {error.lineno}: not a valid Jinja template ({error.message})",
            hint="mend the template; its variables are messages, tools and add_generation_prompt",
        ) from error
    return value
