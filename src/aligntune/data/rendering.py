"""Prepared rows to rows that fit a tokenizer, with every truncated or lost row counted.

With a chat template the message lists stay, and the trainer applies the template. Without one they become
plain text in the form of `aligntune.data.messages.plain_prompt`. Lengths and masks are those of TRL 1.14: the
template or the text plus the EOS token, cut to the first `max_length` tokens; the completion begins where the
tokens of the prompt alone and of the whole row part.

>>> rendered = render(prepared, Schema.PROMPT_COMPLETION, tokenizer, max_length=512)
>>> rendered.notes[-1]
'12 of 3500 rows are longer than model.max_seq_length = 512 tokens and are cut there (longest: 803).'

Rows that TRL would drop without a word (nothing left to train on) are dropped here and counted. Packing is
not
considered: it cuts nothing off.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from aligntune.algorithms.base import Schema
from aligntune.data.manager import Prepared
from aligntune.data.messages import Message
from aligntune.data.spool import in_order, only
from aligntune.data.tokenised import Count, LossOn, TokenTable, joined, tokenise
from aligntune.data.tokens import Tokens, common_prefix, fit_to_template, plain_rows
from aligntune.errors import ConfigurationError, ValidationError

if TYPE_CHECKING:
    import datasets

LENGTH_KEY = "model.max_seq_length"
PROMPT_KEY = "generation.max_prompt_length"
CHECKED = 64
"""So many first rows are always tokenised in full, whatever their length, to see that something is trained."""
CHUNK = 1000
"""Rows whose texts are measured at once; it bounds memory."""
TOKENISED = 100
"""Rows tokenised in full at once: a tokenizer keeps some hundred bytes for each token of a batch."""


def render(
    prepared: Prepared,
    schema: Schema,
    tokenizer: Any,
    *,
    max_length: int | None,
    max_prompt_length: int | None = None,
    loss_on: LossOn | None = None,
    keep_tokens: Literal["cut", "whole"] | None = None,
) -> Prepared:
    """Fit rows to the tokenizer and count what the limits cut.

    Args:
        prepared: what `prepare_dataset` made for the same schema.
        tokenizer: a Transformers tokenizer.
        max_length: most tokens a row (`model.max_seq_length`); None cuts nothing. Not used for PROMPT.
        max_prompt_length: most tokens a prompt (PROMPT); longer prompts are left out. None keeps all.
        loss_on: which tokens are trained: "completion" (default of PROMPT_COMPLETION), "assistant" (MESSAGES,
            needs generation marks in the template) or "all" (default elsewhere).
        keep_tokens: put the rows as the trainer gets them into `tokens` too (`aligntune.data.tokenised`): SFT rows cut
            at the limit, or whole, as packing takes them. Not for PROMPT, which is tokenised as it is sampled from.

    Returns:
        A `Prepared` with the same `content_hash` (it names the data before rendering). Columns: TEXT and,
        without a chat template, MESSAGES: `text`; the others as before, as message lists or as text.

    Raises:
        ValidationError: no row has a token to train on, the template refuses a row or marks no assistant
            text, or the tokenizer has no EOS token.
    """
    schema = Schema(schema)
    if schema in (Schema.CLASSIFICATION, Schema.TOKENS):
        raise ConfigurationError("labelled rows are not rendered", hint="use aligntune.data.encode")
    if "input_ids" in prepared.dataset.column_names:
        return fit_tokenized(prepared, tokenizer, max_length if keep_tokens != "whole" else None)
    tokens = Tokens(tokenizer, text=schema is Schema.TEXT, training_template=loss_on == "assistant")
    dataset, notes = prepared.dataset, list(prepared.notes)
    if schema is not Schema.PROMPT:
        wanted = ("prompt", "completion", "label", "pair", "chosen", "rejected", "messages", "text", "tools")
        dataset = only(dataset, [c for c in dataset.column_names if c in wanted])
    if tokens.template is None:
        if schema is not Schema.TEXT:
            dataset, note = plain_rows(dataset, schema)
            notes.append(note)
    else:
        dataset, fitted = fit_to_template(dataset, tokens.template)
        notes += fitted
    if tokens.plain and schema is not Schema.PROMPT:
        tokens.require_eos()
    limit = max_prompt_length if schema is Schema.PROMPT else max_length
    made = None
    if keep_tokens and schema is not Schema.PROMPT:
        count, made = Count(), TokenTable()
        for start, batch in in_order(dataset, TOKENISED):
            made.add(tokenise(batch, start, schema, tokens, limit, count, loss_on, cut=keep_tokens == "cut"))
    else:
        count = _count(dataset, schema, tokens, limit, loss_on)
    if not count.keep:
        raise _nothing_left(prepared, schema, count, limit)
    notes += _notes(count, len(dataset), schema, limit)
    if count.lost:
        dataset = dataset.select(count.keep)
    return dataclasses.replace(prepared, dataset=dataset, notes=notes, tokens=made.dataset() if made else None)


def fit_tokenized(prepared: Prepared, tokenizer: Any, max_length: int | None) -> Prepared:
    """Rows that come as token ids, cut to the limit and counted.

    Raises:
        ValidationError: an id is not in the vocabulary, or no row has a token to train on.
    """
    count, made, size = Count(), TokenTable(), len(tokenizer)
    for start, batch in in_order(prepared.dataset, CHUNK):
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            if max(ids) >= size:
                raise ValidationError(
                    f"row {start + 1} and following: token {max(ids)} is not in the vocabulary of {size} tokens",
                    hint="the rows were tokenised with another tokenizer",
                )
            # The first token is predicted from nothing, so its label counts for nothing.
            first = next((i for i, label in enumerate(labels) if i and label != -100), len(ids))
            count.add(len(count.keep) + count.lost, len(ids), max_length, needed=first + 1)
        kept = [i - start for i in count.keep if i >= start]
        made.add({name: [batch[name][i][:max_length] for i in kept] for name in ("input_ids", "labels")})
    if not count.keep:
        raise _nothing_left(prepared, Schema.TEXT, count, max_length)
    notes = [*prepared.notes, *_notes(count, len(prepared.dataset), Schema.TEXT, max_length)]
    dataset = prepared.dataset.select(count.keep) if count.lost else prepared.dataset
    return dataclasses.replace(prepared, dataset=dataset, notes=notes, tokens=made.dataset())


def _count(
    dataset: datasets.Dataset, schema: Schema, tokens: Tokens, limit: int | None, loss_on: LossOn | None
) -> Count:
    measure = {
        Schema.TEXT: _measure_whole,
        Schema.MESSAGES: _measure_assistant if loss_on == "assistant" else _measure_whole,
        Schema.PROMPT_COMPLETION: _measure_whole_pair if loss_on == "all" else _measure_pair,
        Schema.PREFERENCE: _measure_preference,
        Schema.UNPAIRED: _measure_pair,
        Schema.PROMPT: _measure_prompt,
    }[schema]
    count = Count()
    for start, batch in in_order(dataset, CHUNK):
        measure(batch, start, tokens, limit, count)
    return count


def _measure_whole(batch: dict[str, list[Any]], start: int, tokens: Tokens, limit: int | None, count: Count) -> None:
    _whole(batch["text" if "text" in batch else "messages"], batch, start, tokens, limit, count)


def _measure_whole_pair(
    batch: dict[str, list[Any]], start: int, tokens: Tokens, limit: int | None, count: Count
) -> None:
    _whole(joined(batch, "completion"), batch, start, tokens, limit, count)


def _whole(
    values: list[Any],
    batch: dict[str, list[Any]],
    start: int,
    tokens: Tokens,
    limit: int | None,
    count: Count,
) -> None:
    texts = tokens.texts(values, batch.get("tools"), start=start, closed=True)
    exact = _exact(texts, start, tokens, limit)
    lengths = dict(zip(exact, map(len, tokens.ids([texts[i] for i in exact])), strict=True))
    for i in range(len(texts)):
        # The first token has no token before it to be predicted from, so training needs a second.
        count.add(start + i, lengths.get(i, 2), limit, needed=2)


def _measure_pair(batch: dict[str, list[Any]], start: int, tokens: Tokens, limit: int | None, count: Count) -> None:
    wholes = tokens.texts(joined(batch, "completion"), batch.get("tools"), start=start, closed=True)
    exact = _exact(wholes, start, tokens, limit)
    ids = dict(zip(exact, tokens.ids([wholes[i] for i in exact]), strict=True))
    prompts = _prompt_ids(batch, ids, ids, start, tokens, limit)
    for i in range(len(wholes)):
        length = len(ids[i]) if i in ids else 2
        needed = max(common_prefix(prompts[i], ids[i]) + 1, 2) if i in prompts else 2
        count.add(start + i, length, limit, needed=needed)


def _measure_preference(
    batch: dict[str, list[Any]], start: int, tokens: Tokens, limit: int | None, count: Count
) -> None:
    tools = batch.get("tools")
    chosen = tokens.texts(joined(batch, "chosen"), tools, start=start, closed=True)
    rejected = tokens.texts(joined(batch, "rejected"), tools, start=start, closed=True)
    exact = sorted({*_exact(chosen, start, tokens, limit), *_exact(rejected, start, tokens, limit)})
    left = dict(zip(exact, tokens.ids([chosen[i] for i in exact]), strict=True))
    right = dict(zip(exact, tokens.ids([rejected[i] for i in exact]), strict=True))
    prompts = _prompt_ids(batch, left, right, start, tokens, limit)
    for i in range(len(chosen)):
        length = max(len(left[i]), len(right[i])) if i in left else 1
        needed = 1
        if i in prompts:
            needed = min(common_prefix(prompts[i], left[i]), common_prefix(prompts[i], right[i])) + 1
        count.add(start + i, length, limit, needed=needed)


def _measure_assistant(
    batch: dict[str, list[Any]], start: int, tokens: Tokens, limit: int | None, count: Count
) -> None:
    texts = tokens.texts(batch["messages"], batch.get("tools"), start=start, closed=True)
    exact = set(_exact(texts, start, tokens, limit))
    tools = batch.get("tools") or [None] * len(texts)
    for i in range(len(texts)):
        length, needed = 2, 2
        if i in exact:
            length, first = tokens.assistant_start(batch["messages"][i], tools[i])
            # Past the end stands for "no token of the assistant is marked".
            needed = max(first, 2)
        count.add(start + i, length, limit, needed=needed)


def _measure_prompt(batch: dict[str, list[Any]], start: int, tokens: Tokens, limit: int | None, count: Count) -> None:
    texts = tokens.texts(batch["prompt"], None, start=start, prompt=True)
    exact = [] if limit is None else [i for i, t in enumerate(texts) if not tokens.surely_within(t, limit)]
    lengths = dict(zip(exact, map(len, tokens.ids([texts[i] for i in exact])), strict=True))
    for i in range(len(texts)):
        length = lengths.get(i, 1)
        # A prompt must fit whole: cutting it would ask the policy another question.
        count.add(start + i, length, limit, needed=length)


def _exact(texts: list[str], start: int, tokens: Tokens, limit: int | None) -> list[int]:
    """Rows whose tokens must be counted: the first ones, and those that may be longer than the limit."""
    return [
        i
        for i, text in enumerate(texts)
        if start + i < CHECKED or (limit is not None and not tokens.surely_within(text, limit))
    ]


def _prompt_ids(
    batch: dict[str, list[Any]],
    left: dict[int, list[int]],
    right: dict[int, list[int]],
    start: int,
    tokens: Tokens,
    limit: int | None,
) -> dict[int, list[int]]:
    """Tokens of the prompts alone, of the rows where they matter: those that are cut, and the first ones."""
    chosen = [
        i for i in left if start + i < CHECKED or (limit is not None and max(len(left[i]), len(right[i])) > limit)
    ]
    prompts: list[str | list[Message]] = [batch["prompt"][i] for i in chosen]
    tools = [batch["tools"][i] for i in chosen] if "tools" in batch else None
    texts = tokens.texts(prompts, tools, start=start, prompt=True)
    return dict(zip(chosen, tokens.ids(texts), strict=True))


def _notes(count: Count, total: int, schema: Schema, limit: int | None) -> list[str]:
    notes = []
    if schema is Schema.PROMPT:
        if count.lost:
            notes.append(
                f"Left out {count.lost} of {total} prompts of more than {PROMPT_KEY} = {limit} tokens "
                f"(longest: {count.longest})."
            )
        return notes
    if count.lost:
        notes.append(
            f"Left out {count.lost} of {total} rows with no token to train on within {LENGTH_KEY} = {limit}: "
            f"in {count.cut_off} the prompt alone fills it."
        )
    if count.truncated:
        notes.append(
            f"{count.truncated} of {total} rows are longer than {LENGTH_KEY} = {limit} tokens and are cut there "
            f"(longest: {count.longest})."
        )
    return notes


def _nothing_left(prepared: Prepared, schema: Schema, count: Count, limit: int | None) -> ValidationError:
    total = count.lost
    if schema is Schema.PROMPT:
        return ValidationError(
            f"all {total} prompts of {prepared.source} are longer than {PROMPT_KEY} = {limit} tokens "
            f"(shortest: {count.shortest})",
            hint=f"set {PROMPT_KEY} to {count.shortest} or more",
            context={"rows": total, "limit": limit, "shortest": count.shortest},
        )
    if count.cut_off == 0:
        return ValidationError(
            f"none of the {total} rows of {prepared.source} has a token to train on: every label is masked",
            hint="the chat template renders no answer, or marks none with {% generation %}; set model.chat_template, "
            "or train on all tokens",
            context={"rows": total, "limit": limit},
        )
    return ValidationError(
        f"none of the {total} rows of {prepared.source} has a token to train on: in {count.cut_off} of them everything "
        f"before the first trained token fills {LENGTH_KEY} = {limit} (the shortest needs {count.shortest})",
        hint=f"set {LENGTH_KEY} to {count.shortest} or more",
        context={"rows": total, "limit": limit, "shortest": count.shortest},
    )
