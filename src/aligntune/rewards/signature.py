"""What a reward function's signature says: its columns, its parameters, and whether it scores a batch.

    def cites_source(text: str, reference: str, *, strict: bool = False) -> float: ...

Here `reference` is a column (no default), `strict` a parameter (keyword-only). The whole rule, for every name
after `text`: the value comes from `params`; else from the data's column of that name (not for a keyword-only
name with a default); else from the default. A function with `prompts` or `completions` among its names has
TRL's batch signature: its columns are lists. One with `data_source`, `solution_str` and `ground_truth` has verl's
(`compute_score`): the text is `solution_str`, and the gold answer that of `reward_model` or a gold column. All three
forms may be `async def`.

Source: TRL's reward-function interface (`GRPOTrainer`, release 1.14.2) for the batch form; verl's custom reward
functions (documentation of release 0.5, "Reward function"). It does not call anything.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aligntune.errors import ConfigurationError
from aligntune.registry import nearest

GOLD = "reference"
GOLD_COLUMNS = ("reference", "answer", "solution", "ground_truth")
"""Where the gold answer is looked for, in this order."""
PROVIDED = frozenset({"prompt", "completion", "completion_ids"})
"""Columns that whoever scores gives; the data need not have them."""
_BATCH = frozenset({"prompts", "completions"})
_VERL = ("data_source", "solution_str", "ground_truth")
VERL_GOLD = "reward_model"
"""verl's column with the gold answer: a mapping with `ground_truth`."""
_EXTRAS = frozenset({"completion_ids", "trainer_state", "log_metric", "log_extra", "environments"})


@dataclass(frozen=True)
class Signature:
    """The names that a reward function takes.

    Attributes:
        required: names without a default; each must be a parameter or a column.
        defaults: names with a default, and the default.
        keyword_only: names that only `params` may set, unless they are required.
        open: the function takes `**columns`, and so gets every column.
        batch: the function has TRL's batch signature.
        text: name of the first argument, which takes the completion; a column of that name cannot be had.
        types: annotations, where they can be resolved.
        verl: the function has verl's signature.
        asynchronous: it is a coroutine function.
    """

    required: tuple[str, ...]
    defaults: Mapping[str, Any]
    keyword_only: frozenset[str]
    open: bool
    batch: bool
    text: str
    types: Mapping[str, Any]
    verl: bool = False
    asynchronous: bool = False

    @property
    def listing(self) -> str:
        """All parameters with their defaults, for messages."""
        pairs = [*self.required, *(f"{k} = {v!r}" for k, v in self.defaults.items())]
        return f"its parameters: {', '.join(pairs)}"

    def columns(self, params: Mapping[str, Any]) -> frozenset[str]:
        """The columns that the data must have, once `params` are given."""
        return frozenset(self.required) - set(params) - PROVIDED

    def reads(self, params: Mapping[str, Any], present: Iterable[str]) -> frozenset[str]:
        """Those of the data's columns that a call is given."""
        have = set(present) - PROVIDED
        if self.open:
            return frozenset(have)
        names = {n for n in (*self.required, *(set(self.defaults) - self.keyword_only)) if n not in params}
        names |= {gold_column(dict.fromkeys(have)) or GOLD} if GOLD in names - have else set()
        return frozenset((names | ({VERL_GOLD} if self.verl else set())) & have)

    def check(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """`params` with their types checked and converted.

        Raises:
            ConfigurationError: an unknown parameter (all are listed) or a value of the wrong type.
        """
        known = [name for name in (*self.required, *self.defaults) if name not in PROVIDED]
        checked: dict[str, Any] = {}
        for key, value in params.items():
            if key not in known and not self.open:
                shown = nearest(key, known) if known else "it has no parameters"
                raise ConfigurationError(f"reward '{name}' has no parameter '{key}'", hint=shown)
            checked[key] = _convert(name, key, value, self.types[key]) if key in self.types else value
        return checked


def _convert(name: str, key: str, value: Any, annotation: Any) -> Any:
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    try:
        return TypeAdapter(annotation).validate_python(value)
    except PydanticSchemaGenerationError:
        return value  # an annotation such as a user's own class, which only the function itself can judge
    except ValidationError as e:
        what = e.errors()[0]["msg"]
        raise ConfigurationError(
            f"reward '{name}': the parameter {key} = {value!r} does not fit: {what}",
            hint=f"{key} is declared as {annotation}",
        ) from e


def read_signature(fn: Callable[..., Any], name: str) -> Signature:
    """Read the signature of a reward function.

    Raises:
        ConfigurationError: the function takes no text, or gives its scores one by one (a generator).
    """
    forms = (fn, getattr(fn, "__call__", None))  # noqa: B004 - an object's own call, which may be a coroutine
    asynchronous = any(inspect.iscoroutinefunction(f) for f in forms)
    if any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in forms):
        raise ConfigurationError(f"reward '{name}' is a generator", hint="return the score in place of yielding it")
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError) as e:
        raise ConfigurationError(f"reward '{name}' has no readable signature", hint="wrap it in a function") from e
    batch = any(p.name in _BATCH for p in parameters)
    if not batch and set(_VERL) <= {p.name for p in parameters}:
        return _read_verl(fn, parameters, asynchronous)
    first = "text"
    if not batch:
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise ConfigurationError(
                f"reward '{name}' takes no text",
                hint="write fn(text, **columns) -> float, or TRL's fn(prompts, completions, **columns) -> list",
            )
        first, parameters = parameters[0].name, parameters[1:]
    named = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and not (batch and p.name in _BATCH | _EXTRAS)
    ]
    return Signature(
        required=tuple(p.name for p in named if p.default is p.empty),
        defaults={p.name: p.default for p in named if p.default is not p.empty},
        keyword_only=frozenset(p.name for p in named if p.kind is p.KEYWORD_ONLY),
        open=any(p.kind is p.VAR_KEYWORD for p in parameters),
        batch=batch,
        text=first,
        types=_types(fn, [p.name for p in named]),
        asynchronous=asynchronous,
    )


def _read_verl(fn: Callable[..., Any], parameters: list[inspect.Parameter], asynchronous: bool) -> Signature:
    """verl's form: its gold answer is our `reference`, what it may miss is None, and the rest are parameters."""
    rest = [p for p in parameters if p.name not in _VERL and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    defaults = {p.name: None if p.default is p.empty else p.default for p in rest}
    return Signature(
        required=(GOLD,),
        defaults={"data_source": None, **defaults},
        keyword_only=frozenset(n for n in defaults if n != "extra_info"),
        open=False,
        batch=False,
        text="solution_str",
        types=_types(fn, list(defaults)),
        verl=True,
        asynchronous=asynchronous,
    )


def verl_arguments(
    signature: Signature, text: str, params: Mapping[str, Any], row: Mapping[str, Any]
) -> dict[str, Any]:
    """The keyword arguments of verl's `compute_score` for one row.

    `extra_info` is a mapping, read from JSON text where the column holds that; without the column it is the default.
    """
    told = mapping_of(row.get(VERL_GOLD))
    if GOLD not in params and told is not None and "ground_truth" in told:
        row = {**row, GOLD: told["ground_truth"]}
    given = bind(signature, params, row)
    if isinstance(given.get("extra_info"), str):
        given["extra_info"] = mapping_of(given["extra_info"]) or given["extra_info"]
    gold = given.pop(GOLD)
    return {"data_source": None, **given, "solution_str": text, "ground_truth": gold}


def mapping_of(value: Any) -> Mapping[str, Any] | None:
    """A mapping, or the JSON text of one; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, Mapping) else None


def _types(fn: Callable[..., Any], names: list[str]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(fn, include_extras=True)
    except (NameError, TypeError, AttributeError):  # annotations that only a type checker can see
        return {}
    return {name: hints[name] for name in names if name in hints}


def bind(signature: Signature, params: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of one call, by the rule above; `reference` is filled from the gold columns.

    Args:
        columns: one row (values), or for the batch form whole columns (lists).

    Raises:
        ConfigurationError: a required name is neither a parameter nor a column.
    """
    kept = PROVIDED if signature.batch else {signature.text}  # TRL gives the provided columns under names of its own
    call: dict[str, Any] = {k: v for k, v in columns.items() if k not in kept} if signature.open else {}
    gold = gold_column(columns)
    for name in signature.required:
        if name in params:
            call[name] = params[name]
        elif name in columns:
            call[name] = columns[name]
        elif name == GOLD and gold is not None:
            call[name] = columns[gold]
        else:
            raise ConfigurationError(
                f"needs '{name}', which is neither among its parameters nor a column of the data",
                hint=f"the data have: {', '.join(sorted(columns)) or 'no columns'}; map one with column_mapping",
            )
    for name in signature.defaults:
        if name in params:
            call[name] = params[name]
        elif name not in signature.keyword_only and name in columns:
            call[name] = columns[name]
        elif name not in signature.keyword_only and name == GOLD and gold is not None:
            call[name] = columns[gold]
        else:
            call.pop(name, None)
    for name in params:  # parameters that an open signature takes without naming them
        call.setdefault(name, params[name])
    return call


def gold_column(columns: Mapping[str, Any]) -> str | None:
    """The column that holds the gold answer, if there is one."""
    return next((name for name in GOLD_COLUMNS if name in columns), None)


def missing_columns(required: frozenset[str] | Sequence[str], present: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The required columns that are not there; any gold column stands for `reference`."""
    have = set(present)
    return sorted(c for c in required if c not in have and not (c == "reference" and gold_column(dict.fromkeys(have))))
