"""Batched text generation for evaluation: greedy or sampled answers to a list of prompts.

Conversations go through the tokenizer's chat template with its generation prompt, and without a template become the
plain text that training data become (`aligntune.data.messages.plain_prompt`). Decoding is Transformers' `generate`
with every setting passed explicitly, so that a model's `generation_config.json` (a repetition penalty, a top-k of 50)
does not change a score unseen. Batches hold prompts of similar length, padded on the left.

>>> generate_texts(model, tokenizer, ["2+2="], max_new_tokens=4)
[['4']]

It decodes in the dtype of the model's weights. In place of a model it takes an `AnswerEngine` (`eval.vllm_engine`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.utils.logging import get_logger

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        text: the answer without special tokens.
        tokens: number of generated tokens, the end-of-sequence token included.
        finished: it ended with an end-of-sequence token; False means that it was cut at the token limit.
    """

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled; the fields are the arguments of `generate_answers`.

    Attributes:
        end_tokens: ids that end an answer.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float | None
    repetition_penalty: float
    num_samples: int
    stop: Sequence[str]
    seed: int | None
    end_tokens: Sequence[int]


class AnswerEngine(ABC):
    """A model that something else than Transformers runs, and that can only write answers.

    Attributes:
        config: the model's Transformers configuration.
        generation_config: its generation settings, for the ids that end an answer; or None.
        most: tokens of prompt and answer, where they are fewer than the model's context.
    """

    config: Any
    generation_config: Any
    most: int | None = None

    @abstractmethod
    def answers(
        self, tokenizer: Any, rows: Sequence[list[int]], rooms: Sequence[int], sampling: Sampling
    ) -> list[list[Answer]]:
        """`sampling.num_samples` answers to each row of token ids.

        Args:
            tokenizer: turns ids into text.
            rows: token ids of the prompts.
            rooms: most new tokens of each.
            sampling: how.
        """


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int = 8,
    num_samples: int = 1,
    seed: int | None = None,
) -> list[list[str]]:
    """Answers to `prompts`: one list of `num_samples` texts per prompt, in the order of the prompts.

    The arguments and errors are those of `generate_answers`.
    """
    answers = generate_answers(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        batch_size=batch_size,
        num_samples=num_samples,
        seed=seed,
    )
    return [[answer.text for answer in row] for row in answers]


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    batch_size: int = 8,
    num_samples: int = 1,
    stop: Sequence[str] = (),
    truncate: bool = False,
    seed: int | None = None,
) -> list[list[Answer]]:
    """As `generate_texts`, with each answer's length and whether it ended by itself.

    Args:
        model: a causal language model with `generate` (Transformers, PEFT), or an `AnswerEngine`.
        tokenizer: its tokenizer.
        prompts: strings or message lists, one kind throughout.
        max_new_tokens: most tokens per answer. An answer also ends where the model's context does.
        temperature: 0 decodes greedily; above 0 samples.
        top_p: nucleus of the sampling; 1.0 is off.
        top_k: sample among the k likeliest tokens; 0 is off.
        min_p: drop tokens below this share of the likeliest one; None is off.
        repetition_penalty: on tokens seen before; 1.0 is off.
        batch_size: sequences per batch. Greedy answers do not depend on it; sampled ones do.
        num_samples: answers per prompt; above 1 needs a temperature.
        stop: an answer ends before the first of these strings.
        truncate: a prompt that leaves no room for `max_new_tokens` in the model's context loses its beginning.
        seed: of the sampling. It is local to the call: the caller's random state is put back. None draws from the
            caller's generator, which then moves on.

    Raises:
        ConfigurationError: a setting is out of range, or several greedy samples are asked for.
        ValidationError: an empty prompt, or one that fills the model's context.
    """
    _check(max_new_tokens, temperature, top_p, top_k, batch_size, num_samples)
    if not prompts:
        return []
    encoded = encode_prompts(tokenizer, prompts)
    if truncate:
        encoded = _shortened(model, encoded, max_new_tokens)
    rooms = _rooms(model, encoded, max_new_tokens)
    if isinstance(model, AnswerEngine):
        ends = _end_tokens(model, tokenizer)
        how = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, num_samples, list(stop), seed, ends)
        return model.answers(tokenizer, encoded, rooms, how)
    settings = sampling_settings(
        model, tokenizer, temperature, top_p, top_k, min_p=min_p, repetition_penalty=repetition_penalty
    )
    jobs = sorted(
        (i for i in range(len(encoded)) for _ in range(num_samples)), key=lambda i: (rooms[i], -len(encoded[i]))
    )
    answers: list[list[Answer]] = [[] for _ in prompts]
    with evaluating(model), seeded(model, seed):
        for batch in _batches(jobs, rooms, batch_size):
            new = _generate(model, [encoded[i] for i in batch], settings, rooms[batch[0]], (tokenizer, stop))
            for i, answer in zip(batch, decode(tokenizer, new, settings.eos_token_id, stop), strict=True):
                answers[i].append(answer)
    return answers


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt, as training tokenizes it: chat template, or plain text with the special tokens.

    Raises:
        ValidationError: a prompt without tokens.
    """
    texts, templated = prompt_texts(tokenizer, prompts)
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=not templated)["input_ids"]
    empty = next((i for i, row in enumerate(ids) if not row), None)
    if empty is not None:
        raise ValidationError(
            f"prompt {empty} has no tokens: {prompts[empty]!r}", hint="leave empty prompts out before evaluation"
        )
    return ids


def prompt_texts(tokenizer: Any, prompts: Sequence[Prompt]) -> tuple[list[str], bool]:
    """The text of each prompt up to where the answer begins, and whether a chat template wrote it.

    A conversation that ends with the assistant's turn is continued in that turn.

    Raises:
        ValidationError: strings and conversations are mixed.
    """
    if all(isinstance(p, str) for p in prompts):
        return [str(p) for p in prompts], False
    if any(isinstance(p, str) for p in prompts):
        raise ValidationError("prompts mix strings and conversations", hint="pass one kind in a call")
    conversations: list[list[dict[str, Any]]] = [list(p) for p in prompts]  # type: ignore[arg-type]
    if not tokenizer.chat_template:
        from aligntune.data.messages import plain_prompt

        return [plain_prompt(c) for c in conversations], False
    texts = []
    for conversation in conversations:
        continues = conversation[-1]["role"] == "assistant"
        texts.append(
            tokenizer.apply_chat_template(
                conversation,
                tokenize=False,
                add_generation_prompt=not continues,
                continue_final_message=continues,
            )
        )
    return texts, True


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module has the mode that it had."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: a buffer cached in there could not be used in a later training step.
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def context_length(model: Any) -> int | None:
    """Most positions that the model was made for; None where its config does not say."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    length = getattr(config, "max_position_embeddings", None)
    limits = [n for n in (length, getattr(model, "most", None)) if isinstance(n, int) and n > 0]
    return min(limits, default=None)


def _check(
    max_new_tokens: int, temperature: float, top_p: float, top_k: int, batch_size: int, num_samples: int
) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size), ("num_samples", num_samples)):
        if value < 1:
            raise ConfigurationError(f"{name} is {value}", hint=f"set {name} to at least 1")
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise ConfigurationError(
            f"cannot sample with temperature {temperature}, top_p {top_p}, top_k {top_k}",
            hint="temperature and top_k are at least 0 (0: greedy, off), top_p lies in (0, 1]",
        )
    if temperature == 0 and num_samples > 1:
        raise ConfigurationError(
            f"num_samples is {num_samples} with temperature 0, which gives {num_samples} equal answers",
            hint="set temperature above 0, or num_samples to 1",
        )


def _shortened(model: Any, encoded: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """The end of each prompt, so that `max_new_tokens` fit behind it."""
    limit = context_length(model)
    if limit is None:
        return encoded
    keep = limit - max_new_tokens
    if keep < 1:
        raise ConfigurationError(
            f"max_new_tokens is {max_new_tokens}, and the model's context has {limit} tokens",
            hint=f"set max_new_tokens below {limit}",
        )
    long = sum(len(ids) > keep for ids in encoded)
    if long:
        get_logger(__name__).warning(
            "%d of %d prompts are cut at their beginning to %d tokens", long, len(encoded), keep
        )
    return [ids[-keep:] for ids in encoded]


def _rooms(model: Any, encoded: list[list[int]], max_new_tokens: int) -> list[int]:
    """Most new tokens of each prompt: `max_new_tokens`, or what its context leaves."""
    limit = context_length(model)
    if limit is None:
        return [max_new_tokens] * len(encoded)
    full = next((i for i, ids in enumerate(encoded) if len(ids) >= limit), None)
    if full is not None:
        raise ValidationError(
            f"prompt {full} has {len(encoded[full])} tokens, and the model's context has {limit}",
            hint="leave out or shorten prompts of that length, or cut them at their beginning: truncate_prompts: true",
        )
    rooms = [min(max_new_tokens, limit - len(ids)) for ids in encoded]
    short = sum(room < max_new_tokens for room in rooms)
    if short:
        get_logger(__name__).warning(
            "%d of %d prompts leave less than max_new_tokens=%d in the context of %d tokens: their answers end there",
            short,
            len(rooms),
            max_new_tokens,
            limit,
        )
    return rooms


def sampling_options(generation: Any) -> dict[str, Any]:
    """How a run's section `generation` samples, as arguments of `generate_answers` and `sampling_settings`."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {name: getattr(generation, name) for name in names}


def sampling_settings(
    model: Any,
    tokenizer: Any,
    temperature: float,
    top_p: float,
    top_k: int,
    *,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> Any:
    """A generation config in which nothing that changes the distribution is left to the model's files."""
    from transformers import GenerationConfig

    eos = _end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id
    pad = pad if pad is not None else (eos[0] if eos else 0)
    sampling: dict[str, Any] = {"temperature": float(temperature), "top_p": float(top_p), "top_k": int(top_k)}
    if min_p is not None:
        sampling["min_p"] = float(min_p)
    return GenerationConfig(
        do_sample=temperature > 0,
        **(sampling if temperature > 0 else {"temperature": 1.0, "top_p": 1.0, "top_k": 50}),
        typical_p=1.0,
        epsilon_cutoff=0.0,
        eta_cutoff=0.0,
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=float(repetition_penalty),
        encoder_repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        use_cache=True,
        eos_token_id=eos or None,
        pad_token_id=pad,
    )


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the tokenizer's end of sequence, and those of the model (a chat model has several)."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(own if isinstance(own, (list, tuple)) else [own])]
    return list(dict.fromkeys(int(i) for i in ids if i is not None))


def _batches(jobs: list[int], rooms: list[int], batch_size: int) -> Iterator[list[int]]:
    """Neighbours in `jobs` with the same room: rows of one batch stop at the same number of new tokens."""
    batch: list[int] = []
    for i in jobs:
        if batch and (len(batch) == batch_size or rooms[i] != rooms[batch[0]]):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _generate(
    model: Any, rows: list[list[int]], settings: Any, room: int, stop: tuple[Any, Sequence[str]] = (None, ())
) -> list[list[int]]:
    """New token ids of each row; rows are padded on the left to the longest. `stop`: a tokenizer, and strings."""
    import torch

    width = max(map(len, rows))
    pad = settings.pad_token_id
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    settings.max_new_tokens = room
    more = {"stopping_criteria": [_stopping(*stop, width)]} if stop[1] else {}
    output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, **more)
    new: list[list[int]] = output[:, width:].tolist()
    return new


def generate_ids(model: Any, rows: list[list[int]], settings: Any, room: int) -> list[list[int]]:
    """New token ids of each row of prompt ids, the first end token included.

    Args:
        model: a causal language model, in the mode that it is to be sampled in.
        rows: token ids of the prompts; they are padded on the left.
        settings: of `sampling_settings`.
        room: most new tokens.
    """
    return [ids for ids, _ in _cut(_generate(model, rows, settings, room), settings.eos_token_id)]


def _cut(rows: list[list[int]], eos: list[int] | None) -> list[tuple[list[int], bool]]:
    """Each row up to its first end token, and whether it has one."""
    ends = set(eos or ())
    cut = []
    for row in rows:
        length = next((i + 1 for i, token in enumerate(row) if token in ends), None)
        cut.append((row if length is None else row[:length], length is not None))
    return cut


def decode(tokenizer: Any, rows: list[list[int]], eos: list[int] | None, stop: Sequence[str] = ()) -> list[Answer]:
    """Cut each row of new ids behind its first end token, and before its first stop string, and turn it into text."""
    cut = _cut(rows, eos)
    texts = tokenizer.batch_decode([ids for ids, _ in cut], skip_special_tokens=True)
    answers = [Answer(text, len(ids), finished) for text, (ids, finished) in zip(texts, cut, strict=True)]
    return [_stopped(tokenizer, a, ids, stop) for a, (ids, _) in zip(answers, cut, strict=True)] if stop else answers


def _stopping(tokenizer: Any, stop: Sequence[str], width: int) -> Any:
    """Transformers' criterion that a row's new text holds a stop string.

    Its own `stop_strings` looks at the prompt too, so that a prompt's last letters and the answer's first ones can end
    an answer before it began.
    """
    import torch
    from transformers import StoppingCriteria

    # A token gives at least one byte, but for special ones.
    tail = max(len(mark.encode("utf-8")) for mark in stop) + 8

    class Stopping(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
            new = input_ids[:, max(width, input_ids.shape[1] - tail) :]
            texts = tokenizer.batch_decode(new, skip_special_tokens=True)
            return torch.tensor([any(mark in text for mark in stop) for text in texts], device=input_ids.device)

    return Stopping()


def _stopped(tokenizer: Any, answer: Answer, ids: list[int], stop: Sequence[str]) -> Answer:
    """The answer up to its first stop string; the tokens that wrote that string still count."""
    found = [at for mark in stop if (at := answer.text.find(mark)) >= 0]
    if not found:
        return answer
    tokens = next(
        n for n in range(1, len(ids) + 1) if any(m in tokenizer.decode(ids[:n], skip_special_tokens=True) for m in stop)
    )
    return Answer(answer.text[: min(found)], tokens, True)


@contextmanager
def seeded(model: Any, seed: int | None) -> Iterator[None]:
    """Sampling under `seed`; the caller's random state of the CPU and the model's device comes back afterwards."""
    if seed is None:
        yield
        return
    import torch

    device = next(model.parameters()).device
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield
