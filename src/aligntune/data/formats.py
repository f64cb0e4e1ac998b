"""The formats that rows come in: which columns make them, how they are detected, which schemas they can serve.

Detection goes by column names alone and is always told. `FORMATS` is in order of precedence: the first format
that can serve the schema and whose required columns are all there wins.

| format | columns |
|---|---|
| preference | chosen, rejected [, prompt] |
| ranked | prompt, question, input or instruction; output_1, output_2 (response1 ...); better, preference or label |
| stepwise | prompt or question; completions, labels (lists) |
| verl | prompt (messages); reward_model with ground_truth |
| tokenized | input_ids [, labels or completion_mask] |
| messages | messages [, tools] |
| sharegpt | conversations [, tools, system] |
| alpaca | instruction, output [, input, system] |
| prompt_completion | prompt or question; completion, answer or response |
| text | text |
| unpaired | prompt or question; completion, answer or response; label |
| unpaired_messages | messages or conversations; label |
| classification | text, sentence or content; label_text, label, category, intent or class |
| tokens | tokens or words; tags, ner_tags or labels |
| prompt | prompt or question; every other column is kept for the rewards |

>>> plan = make_plan(["question", "answer"], DatasetConfig(name="x"), Schema.PROMPT_COMPLETION, None)
>>> plan.format, plan.fields.columns
('prompt_completion', {'prompt': 'question', 'completion': 'answer'})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data import examples, labelled
from aligntune.data.examples import Example, Fields
from aligntune.data.presets import Preset
from aligntune.data.templates import PromptTemplate
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.registry import nearest

PROMPT_COLUMNS = ("prompt", "question")
GOLD_COLUMNS = ("reference", "answer", "solution", "ground_truth")
"""Columns that hold a gold answer, the first present one is taken."""


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        roles: our column name to the source's names that are tried for it.
        required: roles that must be found.
        schemas: what it can be turned into.
        read: the reader of one row.
        templated: roles that a `prompt_template` stands in for; empty if a template has no place.
    """

    roles: dict[str, tuple[str, ...]]
    required: tuple[str, ...]
    schemas: tuple[Schema, ...]
    read: Callable[[dict[str, Any], Fields, Schema], Example]
    templated: tuple[str, ...] = ()


_ANSWERED = (Schema.MESSAGES, Schema.PROMPT_COMPLETION, Schema.PROMPT)

FORMATS: dict[str, Format] = {
    "preference": Format(
        roles={
            "prompt": (*PROMPT_COLUMNS, "conversations"),
            "chosen": ("chosen",),
            "rejected": ("rejected",),
            "system": (),
            "tools": ("tools",),
        },
        required=("chosen", "rejected"),
        schemas=(Schema.PREFERENCE, Schema.PROMPT, Schema.UNPAIRED),
        read=examples.read_preference,
        templated=("prompt",),
    ),
    "ranked": Format(
        roles={
            "prompt": (*PROMPT_COLUMNS, "input", "instruction"),
            "first": ("output_1", "response_1", "response1", "answer_1"),
            "second": ("output_2", "response_2", "response2", "answer_2"),
            "better": ("better", "preference", "label"),
            "system": (),
            "tools": ("tools",),
        },
        required=("prompt", "first", "second", "better"),
        schemas=(Schema.PREFERENCE, Schema.PROMPT, Schema.UNPAIRED),
        read=examples.read_ranked,
        templated=("prompt",),
    ),
    "stepwise": Format(
        roles={"prompt": PROMPT_COLUMNS, "completions": ("completions",), "labels": ("labels",), "system": ()},
        required=("prompt", "completions", "labels"),
        schemas=(Schema.UNPAIRED, Schema.PROMPT),
        read=examples.read_stepwise,
        templated=("prompt",),
    ),
    "verl": Format(
        roles={"prompt": ("prompt",), "reward_model": ("reward_model",), "system": ()},
        required=("prompt", "reward_model"),
        schemas=(Schema.PROMPT,),
        read=examples.read_verl,
    ),
    "messages": Format(
        roles={"messages": ("messages",), "system": (), "tools": ("tools",)},
        required=("messages",),
        schemas=_ANSWERED,
        read=examples.read_conversation,
    ),
    "sharegpt": Format(
        roles={"conversations": ("conversations",), "system": ("system",), "tools": ("tools",)},
        required=("conversations",),
        schemas=_ANSWERED,
        read=examples.read_conversation,
    ),
    "alpaca": Format(
        roles={
            "instruction": ("instruction",),
            "input": ("input",),
            "output": ("output",),
            "system": ("system",),
            "tools": (),
        },
        required=("instruction", "output"),
        schemas=_ANSWERED,
        read=examples.read_alpaca,
        templated=("instruction", "input"),
    ),
    "prompt_completion": Format(
        roles={
            "prompt": PROMPT_COLUMNS,
            "completion": ("completion", "answer", "response"),
            "system": (),
            "tools": ("tools",),
        },
        required=("prompt", "completion"),
        schemas=_ANSWERED,
        read=examples.read_pair,
        templated=("prompt",),
    ),
    "unpaired": Format(
        roles={
            "prompt": PROMPT_COLUMNS,
            "completion": ("completion", "answer", "response"),
            "label": ("label",),
            "system": (),
            "tools": ("tools",),
        },
        required=("prompt", "completion", "label"),
        schemas=(Schema.UNPAIRED,),
        read=examples.read_pair,
        templated=("prompt",),
    ),
    "unpaired_messages": Format(
        roles={
            "messages": ("messages", "conversations"),
            "label": ("label",),
            "system": (),
            "tools": ("tools",),
        },
        required=("messages", "label"),
        schemas=(Schema.UNPAIRED,),
        read=examples.read_conversation,
    ),
    "text": Format(
        roles={"text": ("text",)},
        required=("text",),
        schemas=(Schema.TEXT,),
        read=examples.read_text,
        templated=("text",),
    ),
    "tokenized": Format(
        roles={"input_ids": ("input_ids",), "labels": ("labels",), "completion_mask": ("completion_mask",)},
        required=("input_ids",),
        schemas=(Schema.TEXT,),
        read=examples.read_tokenized,
    ),
    "classification": Format(
        roles={
            "text": ("text", "sentence", "content"),
            "label": ("label_text", "label", "category", "intent", "class"),
        },
        required=("text", "label"),
        schemas=(Schema.CLASSIFICATION,),
        read=labelled.read_labelled,
        templated=("text",),
    ),
    "tokens": Format(
        roles={"tokens": ("tokens", "words"), "tags": ("tags", "ner_tags", "labels")},
        required=("tokens", "tags"),
        schemas=(Schema.TOKENS,),
        read=labelled.read_tokens,
    ),
    "prompt": Format(
        roles={"prompt": PROMPT_COLUMNS, "system": ()},
        required=("prompt",),
        schemas=(Schema.PROMPT,),
        read=examples.read_prompt,
        templated=("prompt",),
    ),
}


@dataclass
class Plan:
    """How the rows of one source will be read."""

    format: str
    fields: Fields
    reference: str | None = None
    """Column of the gold answer (PROMPT only)."""
    reference_after: str | None = None
    """The gold answer is what follows this mark in the completion (PROMPT only)."""
    extra: dict[str, str] = field(default_factory=dict)
    """Names that rewards read, to the source's columns, where the mapping gives them (PROMPT only)."""
    note: str = ""


def make_plan(columns: Sequence[str], source: DatasetConfig, schema: Schema, preset: Preset | None) -> Plan:
    """Settle format and columns.

    Raises:
        ValidationError: no format fits the columns, or a needed column is missing; the columns found are
        listed.
        ConfigurationError: format, preset, mapping, template and schema contradict each other.
    """
    known = dict(preset.column_mapping) if preset else {}
    if schema is not Schema.PROMPT:  # only rewards read a reference
        known.pop("reference", None)
    mapping = {**known, **(source.column_mapping or {})}
    _check_mapping_targets(mapping, columns)
    template = PromptTemplate(source.prompt_template) if source.prompt_template else None
    if schema in (Schema.TEXT, Schema.CLASSIFICATION, Schema.TOKENS) and source.system_prompt:
        raise ConfigurationError(
            "system_prompt has no meaning for plain text",
            hint="remove it, or choose a task that trains on conversations",
        )
    given = source.format or (preset.format if preset else None)
    if given is not None:
        name = given
        if schema not in FORMATS[name].schemas:
            chosen = (
                f"preset '{source.preset or 'of the hub id'}' (format '{name}')"
                if source.format is None
                else f"format '{name}'"
            )
            raise ConfigurationError(
                f"{chosen} has no '{schema.value}' rows in it",
                hint=f"formats that have: {', '.join(n for n, f in FORMATS.items() if schema in f.schemas)}",
            )
    else:
        name = _detect(columns, mapping, template, schema, source)
    spec = FORMATS[name]
    extra = _check_mapping_keys(mapping, name, schema)
    if template and not spec.templated:
        raise ConfigurationError(
            f"prompt_template has no place in format '{name}', whose conversations hold their prompts",
            hint="remove prompt_template, or map columns to another format with `format` and `column_mapping`",
        )
    idle = [role for role in source.column_mapping or {} if template and role in spec.templated]
    if idle:
        raise ConfigurationError(
            f"column_mapping.{idle[0]} has no effect: prompt_template stands in its place",
            hint="remove one of the two; the template may name any column of the row",
        )
    found = _find_roles(columns, mapping, spec, template)
    missing = [role for role in _needed(spec, template, schema) if role not in found]
    if missing:
        raise _missing_column(missing[0], name, spec, columns)
    fields = Fields(found, template, source.system_prompt, preset.answer_end if preset else None)
    plan = Plan(name, fields, extra=extra)
    if schema is Schema.PROMPT:
        _plan_reference(plan, columns, mapping, preset)
    plan.note = _describe(plan, given is not None, template is not None)
    return plan


def _find_roles(
    columns: Sequence[str], mapping: dict[str, str], spec: Format, template: PromptTemplate | None
) -> dict[str, str]:
    found = {}
    for role, names in spec.roles.items():
        if template and role in spec.templated:
            continue
        column = mapping.get(role) or next((n for n in names if n in columns), None)
        if column is not None:
            found[role] = column
    return found


def _needed(spec: Format, template: PromptTemplate | None, schema: Schema) -> list[str]:
    """Roles that must have a column: a template makes the prompt's, and a policy needs no answer."""
    answers = ("output", "completion", "chosen", "rejected") if schema is Schema.PROMPT else ()
    return [r for r in spec.required if r not in answers and not (template and r in spec.templated)]


def _detect(
    columns: Sequence[str],
    mapping: dict[str, str],
    template: PromptTemplate | None,
    schema: Schema,
    source: DatasetConfig,
) -> str:
    complete = []
    for name, spec in FORMATS.items():
        found = _find_roles(columns, mapping, spec, template)
        # All required roles, so that prompt/completion rows are told from bare prompts under every schema.
        if all(r in found or (template and r in spec.templated) for r in spec.required):
            complete.append(name)
    mapped = {key for key in mapping if any(key in spec.roles for spec in FORMATS.values())}
    fitting = [n for n in complete if schema in FORMATS[n].schemas and (not template or FORMATS[n].templated)]
    # A format that knows every mapped name comes first: {prompt: text} must not become `text`.
    best = [n for n in fitting if mapped <= set(FORMATS[n].roles)] or fitting
    if template and not best:  # whole conversations: the caller says that a template has no place in them
        best = [n for n in complete if schema in FORMATS[n].schemas]
    if best:
        return best[0]
    wanted = " or ".join(_columns_of(n) for n, spec in FORMATS.items() if schema in spec.schemas)
    if schema is Schema.PREFERENCE and any(name.startswith("unpaired") for name in complete):
        raise ValidationError(
            f"{source.name} holds single answers with a label, and this algorithm learns from pairs "
            f"(columns found: {', '.join(columns)})",
            hint="set `algo: kto`, which learns from such rows, or give rows with chosen and rejected",
        )
    if complete:
        raise ValidationError(
            f"{source.name} holds '{complete[0]}' rows, which have no '{schema.value}' in them "
            f"(columns found: {', '.join(columns)})",
            hint=f"choose a task or algorithm for such rows, or map columns with column_mapping to {wanted}",
        )
    raise ValidationError(
        f"cannot tell what the rows of {source.name} are (columns found: {', '.join(columns) or 'none'})",
        hint=f"this run needs {wanted}: map your columns, as in `column_mapping: {_example_mapping(schema, columns)}`",
    )


def _columns_of(name: str) -> str:
    return f"{name} ({' + '.join(FORMATS[name].required)})"


def _example_mapping(schema: Schema, columns: Sequence[str]) -> str:
    roles = {
        Schema.TEXT: ["text"],
        Schema.MESSAGES: ["messages"],
        Schema.PROMPT: ["prompt"],
        Schema.PROMPT_COMPLETION: ["prompt", "completion"],
        Schema.PREFERENCE: ["prompt", "chosen", "rejected"],
        Schema.UNPAIRED: ["prompt", "completion", "label"],
        Schema.CLASSIFICATION: ["text", "label"],
        Schema.TOKENS: ["tokens", "tags"],
    }[schema]
    names = [*columns[: len(roles)], *["..."] * len(roles)]
    return "{" + ", ".join(f"{role}: {name}" for role, name in zip(roles, names, strict=False)) + "}"


def _check_mapping_targets(mapping: dict[str, str], columns: Sequence[str]) -> None:
    for role, column in mapping.items():
        if column not in columns and column.split(".")[0] not in columns:
            raise ValidationError(
                f"column '{column}' (for '{role}') is not in the data; columns found: {', '.join(columns)}",
                hint=f"correct column_mapping.{role}: " + nearest(column, columns),
            )


def _check_mapping_keys(mapping: dict[str, str], name: str, schema: Schema) -> dict[str, str]:
    """Mapped names that are no role: columns for the rewards under PROMPT, faults elsewhere."""
    others = {key: column for key, column in mapping.items() if key not in FORMATS[name].roles and key != "reference"}
    if schema is Schema.PROMPT:
        return others
    wrong = [*others, *(["reference"] if "reference" in mapping else [])]
    if wrong:
        raise ConfigurationError(
            f"column_mapping names '{wrong[0]}', which '{name}' rows do not have",
            hint=nearest(wrong[0], FORMATS[name].roles),
        )
    return {}


def _missing_column(role: str, name: str, spec: Format, columns: Sequence[str]) -> ValidationError:
    tried = " or ".join(f"'{n}'" for n in spec.roles[role]) or f"'{role}'"
    return ValidationError(
        f"format '{name}' needs the column {tried}; columns found: {', '.join(columns)}",
        hint=f"name yours with `column_mapping: {{{role}: ...}}`, or set another format",
        context={"missing": role, "columns": list(columns)},
    )


def _plan_reference(plan: Plan, columns: Sequence[str], mapping: dict[str, str], preset: Preset | None) -> None:
    if "reference" in mapping:
        plan.reference = mapping["reference"]
    elif plan.format == "verl":
        plan.reference = f"{plan.fields.columns['reward_model']}.ground_truth"
    elif preset and preset.reference_after and "completion" in plan.fields.columns:
        plan.reference_after = preset.reference_after
    else:
        taken = plan.fields.columns.get("prompt")
        plan.reference = next((n for n in GOLD_COLUMNS if n in columns and n != taken), None)


def _describe(plan: Plan, given: bool, templated: bool) -> str:
    parts = [f"{role} from '{column}'" for role, column in plan.fields.columns.items()]
    if templated:
        parts.insert(0, "prompt from prompt_template" if plan.format != "text" else "text from prompt_template")
    if plan.reference:
        parts.append(f"reference from '{plan.reference}'")
    if plan.reference_after:
        parts.append(f"reference from what follows '{plan.reference_after}' in '{plan.fields.columns['completion']}'")
    return f"format {plan.format} ({'given' if given else 'detected'}): {', '.join(parts)}."
