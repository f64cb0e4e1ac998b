"""Likelihood of given text under a model: negative log-likelihood per row, over the tokens that training counts.

A row is what `aligntune.data.render` gives (`text`, `messages`, `prompt` with `completion`), or a tokenized row
(`input_ids`, with `labels` where -100 is not counted). Tokenization and masks follow TRL 1.14's SFT and DPO trainers:
the end-of-sequence token is added to plain text, and a completion starts where the tokens of the prompt and of the
prompt with its completion part. Sums are taken over tokens, so a mean over rows is token-weighted by
sum(nll) / sum(tokens) and does not change with the batch size.

>>> completion_nll(model, tokenizer, [{"prompt": "2+2=", "completion": "4"}])
[(1.93, 2)]

The first token of a sequence has no prediction and is never counted. It does not use a sliding window: a row longer
than `max_length` is cut at its end, as in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aligntune.data.tokens import common_prefix
from aligntune.errors import ValidationError
from aligntune.eval.generation import Prompt, context_length, evaluating
from aligntune.utils.logging import get_logger

IGNORED = -100
"""Label of a token that is not counted (PyTorch's cross-entropy)."""

LOGIT_ROWS = 2048
"""Token positions turned into fp32 log-probabilities at a time, which bounds memory for large vocabularies."""

Mask = Literal["answers", "all"]


@dataclass(frozen=True)
class Encoded:
    """Token ids, and for each the flag that it is counted."""

    ids: list[int]
    counted: list[bool]

    def cut(self, length: int | None) -> Encoded:
        """The first `length` tokens."""
        return self if length is None else Encoded(self.ids[:length], self.counted[:length])

    def end(self, length: int | None) -> Encoded:
        """The last `length` tokens and the one before them: the last one is predicted, and needs no place."""
        return self if length is None else Encoded(self.ids[-length - 1 :], self.counted[-length - 1 :])


def completion_nll(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int = 8,
    *,
    mask: Mask = "answers",
    max_length: int | None = None,
) -> list[tuple[float, int]]:
    """Summed negative log-likelihood (nats) and number of counted tokens of each row, in order.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        rows: see the module.
        batch_size: sequences per forward pass; results do not depend on it beyond rounding.
        mask: answers counts the completion of prompt/completion rows, the assistant's turns of conversations, and
            all of plain text; all counts every token.
        max_length: cut rows to this many tokens; None cuts at the model's context.

    Returns:
        (nll_sum, tokens) per row; (0.0, 0) for a row without a counted token.
    """
    encoded = [encode_row(tokenizer, row, mask) for row in rows]
    return score(model, tokenizer, encoded, batch_size, max_length=max_length)


def sequence_logprobs(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[Prompt, Prompt]],
    batch_size: int = 8,
    *,
    max_length: int | None = None,
) -> list[tuple[float, int]]:
    """Summed log-probability of each completion given its prompt, and its number of tokens.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        pairs: (prompt, completion), both strings or both message lists.
        batch_size: sequences per forward pass.
        max_length: cut prompt and completion together to this many tokens; None cuts at the model's context.
    """
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    return [(-nll, tokens) for nll, tokens in completion_nll(model, tokenizer, rows, batch_size, max_length=max_length)]


@dataclass(frozen=True)
class PairScore:
    """Log-probabilities of the two answers of a pair, each as (sum in nats, number of tokens)."""

    chosen: tuple[float, int]
    rejected: tuple[float, int]


def preference_logprobs(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int = 8,
    *,
    max_length: int | None = None,
) -> list[PairScore]:
    """Log-probabilities of the chosen and the rejected answer of each row, tokenized as DPO training does.

    Both answers start at the same token: where the shorter common part with the prompt ends.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        rows: `prompt`, `chosen` and `rejected`, all strings or all message lists.
        batch_size: sequences per forward pass.
        max_length: cut prompt and answer together to this many tokens; None cuts at the model's context. A pair whose
            prompt fills it has 0 tokens.
    """
    encoded: list[Encoded] = []
    for row in rows:
        sides = [_prompt_completion(tokenizer, row["prompt"], row[s], row.get("tools")) for s in ("chosen", "rejected")]
        start = min(side.counted.index(True) if any(side.counted) else len(side.ids) for side in sides)
        encoded += [Encoded(side.ids, [i >= start for i in range(len(side.ids))]) for side in sides]
    scored = [(-nll, n) for nll, n in score(model, tokenizer, encoded, batch_size, max_length=max_length)]
    return [PairScore(scored[i], scored[i + 1]) for i in range(0, len(scored), 2)]


def encode_row(tokenizer: Any, row: Mapping[str, Any], mask: Mask = "answers") -> Encoded:
    """The tokens of one row and which of them count.

    Raises:
        ValidationError: the row has none of the known forms (its columns are listed).
    """
    if "input_ids" in row:
        encoded = _tokenized(row)
    elif "prompt" in row and "completion" in row:
        encoded = _prompt_completion(tokenizer, row["prompt"], row["completion"], row.get("tools"))
    elif "messages" in row:
        encoded = _conversation(tokenizer, row["messages"], row.get("tools"), mask)
    elif "text" in row:
        ids = tokenizer(_ended(tokenizer, row["text"]))["input_ids"]
        encoded = Encoded(ids, [True] * len(ids))
    else:
        raise ValidationError(
            f"a row for likelihood has the columns {', '.join(map(str, row)) or 'none'}",
            hint="it needs text, messages, prompt and completion, or input_ids",
        )
    return Encoded(encoded.ids, [True] * len(encoded.ids)) if mask == "all" else encoded


def score(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    batch_size: int = 8,
    *,
    max_length: int | None = None,
    keep: Literal["beginning", "end"] = "beginning",
) -> list[tuple[float, int]]:
    """(nll_sum, tokens) of encoded rows, batched by length, longest first; `keep` says what is left of a long one."""
    limit = length_limit(model, max_length)
    cut = [row.cut(limit) if keep == "beginning" else row.end(limit) for row in rows]
    shortened = sum(len(a.ids) < len(b.ids) for a, b in zip(cut, rows, strict=True))
    if shortened:
        lost = "end" if keep == "beginning" else "beginning"
        get_logger(__name__).warning(
            "%d of %d texts have more than %s tokens and lose their %s", shortened, len(rows), limit, lost
        )
    results: list[tuple[float, int]] = [(0.0, 0)] * len(cut)
    # A row needs a counted token behind the first one; the others need no forward pass.
    work = sorted((i for i, row in enumerate(cut) if any(row.counted[1:])), key=lambda i: -len(cut[i].ids))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    with evaluating(model):
        for start in range(0, len(work), batch_size):
            batch = work[start : start + batch_size]
            for i, result in zip(batch, _score_batch(model, [cut[i] for i in batch], pad), strict=True):
                results[i] = result
    return results


def length_limit(model: Any, max_length: int | None = None) -> int | None:
    """Tokens after which a row is cut: `max_length` or the model's context, the smaller; None for no limit."""
    return min((limit for limit in (max_length, context_length(model)) if limit is not None), default=None)


def _score_batch(model: Any, rows: list[Encoded], pad: int) -> list[tuple[float, int]]:
    import torch

    device = next(model.parameters()).device
    width = max(len(row.ids) for row in rows)
    ids_BT = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows], device=device)
    real_BT = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows], device=device)
    counted_BT = torch.tensor([row.counted + [False] * (width - len(row.ids)) for row in rows], device=device)
    # The last token predicts nothing that counts.
    logits_BTV = model(input_ids=ids_BT[:, :-1], attention_mask=real_BT[:, :-1], use_cache=False).logits
    counted_BT = counted_BT[:, 1:]
    logits_NV, targets_N = logits_BTV[counted_BT], ids_BT[:, 1:][counted_BT]
    nll_N = torch.cat(
        [
            torch.nn.functional.cross_entropy(
                logits_NV[i : i + LOGIT_ROWS].float(), targets_N[i : i + LOGIT_ROWS], reduction="none"
            )
            for i in range(0, len(targets_N), LOGIT_ROWS)
        ]
    )
    counts = counted_BT.sum(dim=1).tolist()
    # MPS has no fp64, so the sums are taken on the CPU.
    sums = [part.double().sum().item() for part in nll_N.cpu().split(counts)]
    return list(zip(sums, counts, strict=True))


def _tokenized(row: Mapping[str, Any]) -> Encoded:
    """A row that a trainer has tokenized: `labels`, or TRL's mask columns, say what counts."""
    ids = [int(i) for i in row["input_ids"]]
    if row.get("labels") is not None:
        return Encoded(ids, [int(label) != IGNORED for label in row["labels"]])
    masks = [row[key] for key in ("completion_mask", "assistant_masks") if row.get(key) is not None]
    return Encoded(ids, [all(bits) for bits in zip(*masks, strict=True)] if masks else [True] * len(ids))


def _prompt_completion(tokenizer: Any, prompt: Prompt, completion: Prompt, tools: Any = None) -> Encoded:
    if isinstance(prompt, str) and isinstance(completion, str):
        prompt_ids = tokenizer(prompt)["input_ids"]
        ids = tokenizer(prompt + _ended(tokenizer, completion))["input_ids"]
    elif isinstance(prompt, str) or isinstance(completion, str):
        raise ValidationError(
            "a row mixes a text and a conversation in prompt and completion", hint="give both as text, or as messages"
        )
    elif not tokenizer.chat_template:
        from aligntune.data.messages import plain_completion, plain_prompt

        return _prompt_completion(tokenizer, plain_prompt(prompt), plain_completion(prompt, completion))
    else:
        prompt_ids = _templated(tokenizer, prompt, tools, add_generation_prompt=True)
        ids = _templated(tokenizer, prompt + completion, tools)
    start = common_prefix(prompt_ids, ids)
    return Encoded(ids, [i >= start for i in range(len(ids))])


def _conversation(tokenizer: Any, messages: list[dict[str, Any]], tools: Any, mask: Mask) -> Encoded:
    """A conversation under the chat template; the assistant's turns count, their end-of-turn token included."""
    if not tokenizer.chat_template:
        from aligntune.data.messages import plain_conversation

        ids = tokenizer(_ended(tokenizer, plain_conversation(messages)))["input_ids"]
        return Encoded(ids, [True] * len(ids))
    if mask == "all":
        ids = _templated(tokenizer, messages, tools)
        return Encoded(ids, [True] * len(ids))
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        result = tokenizer.apply_chat_template(
            messages, tools=_tools(tools), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return Encoded(list(result["input_ids"]), [bool(bit) for bit in result["assistant_masks"]])
    return _by_turns(tokenizer, messages, tools)


def _by_turns(tokenizer: Any, messages: list[dict[str, Any]], tools: Any) -> Encoded:
    """The assistant's turns found by rendering the conversation up to each of them, for templates without markers."""

    def text(count: int, prompt: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages[:count], tools=_tools(tools), tokenize=False, add_generation_prompt=prompt
            )
        )

    whole = text(len(messages), False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = text(i, True), text(i + 1, False)
            if not whole.startswith(before) or not whole.startswith(after):
                raise ValidationError(
                    f"the chat template renders message {i} differently when later messages follow, so the "
                    "assistant's tokens cannot be told apart",
                    hint="use a chat template with {% generation %} markers, or pass tokenized rows with labels",
                )
            spans.append((len(before), len(after)))
    result = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    counted = [any(start < high and end > low for low, high in spans) for start, end in result["offset_mapping"]]
    return Encoded(result["input_ids"], counted)


def _templated(tokenizer: Any, messages: list[dict[str, Any]], tools: Any, **options: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tools=_tools(tools), tokenize=False, **options)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _tools(tools: Any) -> Any:
    """Tool descriptions as a list; data sets store them as JSON text."""
    if isinstance(tools, str):
        import json

        return json.loads(tools)
    return tools or None


def _ended(tokenizer: Any, text: str) -> str:
    """The text with the end-of-sequence token, as TRL trains on plain text; a tokenizer without one adds nothing."""
    end = tokenizer.eos_token
    return text if not end or text.endswith(end) else text + end
