"""Checks of the tokenizer and the chat template: which template, generation marks, append-only, where answers end.

>>> template(subject).reason
"the model's own, qwen3 in TRL's collection (sha256 a4b9...)"

A template is append-only where the rendering of a conversation's beginning is a beginning of the whole rendering. Where
it is not, a turn that was trained in one form is read in another form once the conversation goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.data.tokens import Tokens
from aligntune.errors import AlignTuneError
from aligntune.preflight.subject import LABELLED, Subject, fingerprint
from aligntune.preflight.verdict import Verdict, excerpt, numbers

PROBE: list[dict[str, str]] = [
    {"role": "user", "content": "What is two plus two?"},
    {"role": "assistant", "content": "It is four."},
    {"role": "user", "content": "And three plus three?"},
    {"role": "assistant", "content": "It is six."},
]
"""A conversation that every chat template should take."""
CONVERSATIONS = 32
"""So many conversations of the data are tried for append-only rendering."""


def checks(subject: Subject) -> list[Verdict]:
    """Every check of this module that applies."""
    if subject.tokenizer is None or subject.schema in LABELLED:
        return []
    if subject.schema is Schema.TEXT:
        return [Verdict("chat-template", "template", "pass", "plain text; no chat template is used")]
    found = [template(subject)]
    if subject.tokenizer.chat_template:
        found += [append_only(subject), stop_token(subject)]
        if subject.loss_on == "assistant":
            found.insert(1, generation_marks(subject))
    return found


def template(subject: Subject) -> Verdict:
    """Which template renders the rows, with its hash, beside the model's own."""
    used, own = subject.tokenizer.chat_template, subject.own_template
    if not used:
        status, reason = "warn", "the tokenizer has none: rows become plain text, and the model must be used that way"
        if subject.loss_on == "assistant":
            status, reason = "fail", "the tokenizer has none, and training on the assistant's turns needs one"
        fix = "set model.chat_template to the template of the model's family, or start from its chat version"
        return Verdict("chat-template", "template", status, reason, [], fix, {"used": None})  # type: ignore[arg-type]
    data = {"used": _hash(used), "own": _hash(own), "name": known_name(used)}
    name = f", {data['name']} in TRL's collection" if data["name"] else ""
    if used == own:
        return Verdict("chat-template", "template", "pass", f"the model's own{name} (sha256 {data['used']})", data=data)
    if own is None:
        reason = f"model.chat_template{name} (sha256 {data['used']}); the model has none of its own"
        return Verdict("chat-template", "template", "pass", reason, data=data)
    return Verdict(
        "chat-template",
        "template",
        "warn",
        f"model.chat_template (sha256 {data['used']}) replaces the model's own (sha256 {data['own']})",
        [f"replacement: {excerpt(used)}", f"own: {excerpt(own)}"],
        "remove model.chat_template, unless the model is to learn another format",
        data,
    )


def _hash(text: Any) -> str | None:
    return fingerprint(text) if isinstance(text, str) else None


def known_name(text: str) -> str | None:
    """The name of a template in TRL's collection; None where it is not there."""
    from importlib.util import find_spec

    spec = find_spec("trl")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted((Path(place) / "chat_templates").glob("*.jinja")):
            if file.read_text(encoding="utf-8").strip() == text.strip():
                return file.stem
    return None


def generation_marks(subject: Subject) -> Verdict:
    """Whether the template marks the assistant's text, which assistant-only loss reads."""
    own = "{% generation" in subject.tokenizer.chat_template or "{%- generation" in subject.tokenizer.chat_template
    if own:
        return Verdict("generation-marks", "template", "pass", "the template marks the assistant's text")
    try:
        Tokens(subject.tokenizer, training_template=True)
    except AlignTuneError as error:
        return Verdict("generation-marks", "template", "fail", error.message, fix=error.hint or "")
    said = "the template marks nothing; TRL trains with its marked form of it"
    return Verdict("generation-marks", "template", "pass", said)


def append_only(subject: Subject) -> Verdict:
    """Whether conversations are rendered the same when they go on."""
    tokenizer, broken = subject.tokenizer, []
    conversations = _conversations(subject)
    for row, messages in conversations:
        ends = [i + 1 for i, m in enumerate(messages[:-1]) if m["role"] == "assistant"]
        for end in ends:
            try:
                part = tokenizer.apply_chat_template(messages[:end], tokenize=False)
                whole = tokenizer.apply_chat_template(messages, tokenize=False)
            except _template_error():
                continue  # what a template refuses is told where the rows are rendered
            if not whole.startswith(part.rstrip("\n")):
                broken.append((row, part, whole))
                break
    if not broken:
        return Verdict("append-only", "template", "pass", "the beginning of a conversation is rendered as in the whole")
    row, part, whole = broken[0]
    at = next((i for i, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), min(len(part), len(whole)))
    where = numbers([r for r, _, _ in broken if r >= 0]) if row >= 0 else "a conversation of two turns"
    return Verdict(
        "append-only",
        "template",
        "warn",
        f"the template renders a turn in another way once the conversation goes on ({where})",
        [f"alone: ...{part[max(at - 20, 0) : at + 40]!r}", f"later: ...{whole[max(at - 20, 0) : at + 40]!r}"],
        "train on the last turn alone (task: instruction_following), or set model.chat_template to an append-only form",
        {"rows": [r for r, _, _ in broken]},
    )


def _conversations(subject: Subject) -> list[tuple[int, list[dict[str, Any]]]]:
    """Conversations of several assistant turns, of the data where it has some, else the probe (number -1)."""
    found = []
    if subject.train is not None and subject.fitted is not None:
        names = subject.fitted.dataset.column_names
        for i, row in enumerate(subject.fitted.dataset.select(range(min(len(subject.fitted.dataset), 512)))):
            messages = row["messages"] if "messages" in names else row["prompt"]
            tail = row.get("completion") or row.get("chosen") or []
            if isinstance(messages, list):
                whole = messages + (tail if isinstance(tail, list) else [])
                if sum(m["role"] == "assistant" for m in whole) > 1:
                    found.append((subject.sample.rows[i], whole))
            if len(found) == CONVERSATIONS:
                break
    # A run of single questions is never rendered in two ways, so the probe is for conversations only.
    return found or ([(-1, PROBE)] if subject.schema is Schema.MESSAGES else [])


def stop_token(subject: Subject) -> Verdict:
    """Whether what ends an answer in the template is a token at which generation stops."""
    tokenizer = subject.tokenizer
    try:
        text = tokenizer.apply_chat_template(PROBE[:2], tokenize=False)
    except _template_error():
        return Verdict("stop-token", "template", "skip", "the template refuses a plain question and answer")
    after = text.rpartition(PROBE[1]["content"])[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    stops = stop_ids(subject)
    ends = [i for i in ids if i in special_ids(tokenizer)]
    named = ", ".join(tokenizer.convert_ids_to_tokens(sorted(stops))) or "none"
    if not ends:
        return Verdict(
            "stop-token", "template", "warn", "the template puts no special token after an answer",
            [f"after an answer comes {after!r}; generation stops at {named}"],
            "set model.chat_template to one that ends answers with the EOS token",
        )  # fmt: skip
    shown = tokenizer.convert_ids_to_tokens(ends[0])
    if ends[0] in stops:
        return Verdict("stop-token", "template", "pass", f"answers end with {shown}, at which generation stops")
    return Verdict(
        "stop-token",
        "template",
        "warn",
        f"answers end with {shown}, and generation stops at {named} only: it would run on to the length limit",
        fix=f"set the model's eos_token (tokenizer_config.json, generation_config.json) to {shown}",
        data={"terminator": shown},
    )


def stop_ids(subject: Subject) -> set[int]:
    """Tokens at which generation ends: the tokenizer's EOS, and those of the model's generation config."""
    from transformers import GenerationConfig

    from aligntune.utils.model_source import find_source

    found = {subject.tokenizer.eos_token_id}
    try:
        source = find_source(subject.config.model.name_or_path, subject.config.model.revision)
        stored = GenerationConfig.from_pretrained(source.base).eos_token_id
        found |= set(stored if isinstance(stored, list) else [stored])
    except (OSError, AlignTuneError):
        pass  # a model without a generation config; what is wrong with the model itself is told elsewhere
    return found - {None}


def special_ids(tokenizer: Any) -> set[int]:
    """Special tokens, and those added to the vocabulary: what a turn may end with."""
    return set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())


def _template_error() -> type[Exception]:
    from jinja2 import TemplateError

    return TemplateError
