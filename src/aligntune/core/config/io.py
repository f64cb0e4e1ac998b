"""From YAML, keyword arguments and overrides to a checked, complete configuration, with all faults in one message.

Precedence: defaults < the `base:` file < the file < keyword arguments and flags < `key=value` overrides.

>>> config = load_config("run.yaml", overrides=["train.max_steps=20"])

Nothing heavy is imported, so a fault is reported before torch is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter
from pydantic import ValidationError as PydanticError

from aligntune.algorithms.base import (
    ALIAS_PARAMETERS,
    ALIASES,
    AlgorithmParams,
    algorithm_names,
    explain_unknown,
    parse_params,
)
from aligntune.core.config.base import UNSET, is_section, to_plain, walk
from aligntune.core.config.composing import inert_composition, training_faults
from aligntune.core.config.durations import seconds
from aligntune.core.config.health import inert_health
from aligntune.core.config.reading import apply_overrides, as_mapping, copy_plain, read_yaml, set_key
from aligntune.core.config.root import RLConfig, RunConfig, SFTConfig
from aligntune.errors import ConfigurationError
from aligntune.registry import import_attribute, nearest

S = TypeVar("S")
Fault = tuple[str, str]
RUN_TASKS = "aligntune.eval.in_training:resolved_tasks"  # a lazy name, because evaluation stands in a higher layer


ALL_KEYS = "`aligntune config schema` lists every key with its type and default"


def parse_section(cls: type[S], raw: Any, where: str = "", hint: str = ALL_KEYS) -> S:
    """Build a section from plain values.

    Args:
        hint: where the keys are listed, for faults that have no better advice.

    Raises:
        ConfigurationError: with every fault of the section, one per line, each with its dotted path.
    """
    built, faults = _validate(cls, raw)
    if faults:
        raise _error(faults, where, hint)
    return built  # type: ignore[no-any-return]


def _validate(cls: type, raw: Any, prefix: str = "") -> tuple[Any, list[Fault]]:
    try:
        return TypeAdapter(cls).validate_python(raw), []
    except PydanticError as e:
        return None, _all_faults(cls, e, prefix)
    except ConfigurationError as e:
        return None, [(prefix.rstrip("."), f"{e.message}; {e.hint}" if e.hint else e.message)]


def _all_faults(cls: type, e: PydanticError, prefix: str = "") -> list[Fault]:
    faults: dict[str, str] = {}
    for error in e.errors(include_url=False):
        path, sentence = _fault(cls, error)
        faults.setdefault(f"{prefix}{path}", sentence)
    return list(faults.items())


def construction_error(cls: type, given: Mapping[str, Any], e: PydanticError) -> ConfigurationError:
    """What is wrong with the arguments of a section's class, in the words that a file's faults have."""
    where = f"{cls.__name__}(...)"
    if issubclass(cls, RunConfig):
        name = "algo" if getattr(cls, "kind", None) == "rl" else "task"
        if name in given and (faults := _read(cls, name, given)[1]):
            return _error(faults, where)
    return _error(_all_faults(cls, e), where)


def _fault(cls: type, error: Any) -> tuple[str, str]:
    """One pydantic error as (dotted path, sentence)."""
    unknown = error["type"] == "unexpected_keyword_argument"
    *parents, last = error["loc"] or ("",)
    steps = [p for p in parents if _is_step(p)] + ([last] if unknown or _is_step(last) else [])
    path = list(map(str, steps))
    if unknown:  # the key is the user's own, whatever characters it has
        owner = _owner(cls, steps[:-1])
        if issubclass(owner, AlgorithmParams) and (told := explain_unknown(owner, str(last))):
            return ".".join(path), told
        names = [f.name for f in dataclasses.fields(owner)]
        if owner is SFTConfig and last in ("generation", "rewards", "judge", "composition"):
            return ".".join(path), "belongs to runs with an algorithm (`algo:`), and this one has a task; remove it"
        return ".".join(path), f"unknown key; {nearest(str(last).replace('-', '_'), names)}"
    if error["type"] in ("missing", "missing_argument"):
        return ".".join(path), "is missing"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    given = error.get("input")
    shown = f" (got {given!r})" if not isinstance(given, (dict, list)) and given is not None else ""
    said, semicolon, fix = (message[:1].lower() + message[1:]).partition("; ")
    owner = _owner(cls, steps[:-1])
    if error["type"] == "greater_than_equal" and issubclass(owner, AlgorithmParams) and last in owner.limits:
        semicolon, fix = "; ", owner.limits[last]
    if "loss_type" in path and isinstance(given, str) and given in algorithm_names():
        semicolon, fix = "; ", f"that is an algorithm: write `algo: {given}`"
    return ".".join(path), said + shown + semicolon + fix


def _is_step(part: Any) -> bool:
    """Whether a part of pydantic's location is a key or an index, and not one of its tags (`function-before[...]`)."""
    return isinstance(part, int) or re.fullmatch(r"[A-Za-z_]\w*", str(part)) is not None


def _owner(cls: type, steps: list[Any]) -> Any:
    owner: Any = cls
    for step in steps:
        owner = _child(owner, step) or owner
    return owner


def _child(owner: Any, step: Any) -> Any:
    """The section class behind a field, seen through Annotated, Optional and list."""
    if isinstance(step, int) or not dataclasses.is_dataclass(owner):
        return None
    return _find_section(get_type_hints(owner, include_extras=True).get(step))


def _find_section(hint: Any) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next((found for arg in get_args(hint) if (found := _find_section(arg))), None)


def _error(faults: list[Fault], where: str, hint: str = ALL_KEYS) -> ConfigurationError:
    prefix = f"{where}: " if where else ""
    if len(faults) == 1:
        path, sentence = faults[0]
        head, _, tail = sentence.partition("; ")
        return ConfigurationError(
            f"{prefix}{path}: {head}" if path else f"{prefix}{head}",
            hint=tail or hint,
            context={"faults": faults},
        )
    lines = "\n".join(f"  {path}: {sentence}" if path else f"  {sentence}" for path, sentence in faults)
    return ConfigurationError(
        f"{prefix}{len(faults)} settings are wrong\n{lines}",
        hint=hint,
        context={"faults": faults},
    )


def build_config(source: Mapping[str, Any], where: str = "") -> RLConfig | SFTConfig:
    """A checked and completed configuration from plain values.

    Raises:
        ConfigurationError: with every fault: unknown keys, wrong types, contradictions, keys without effect.
    """
    given: dict[str, Any] = copy_plain(as_mapping(source))
    present = [k for k in ("algo", "task") if k in given]
    if len(present) != 1:
        both = "both `algo` and `task`" if present else "neither `algo` nor `task`"
        extra = "" if present else _stray(given)
        raise _error(
            [
                (
                    "",
                    f"has {both}{extra}; give `algo` for preference or policy optimisation, `task` for supervised "
                    "tuning",
                )
            ],
            where,
        )
    section_name = present[0]
    cls: type[RLConfig] | type[SFTConfig] = RLConfig if section_name == "algo" else SFTConfig
    config, faults = _read(cls, section_name, given)
    if faults:
        raise _error(faults, where)
    explicit = {path for path, _ in _leaves(given)}
    resolved: RLConfig | SFTConfig = resolve(config, explicit=explicit, where=where)
    return resolved


def _read(cls: Any, section_name: str, given: Mapping[str, Any]) -> tuple[Any, list[Fault]]:
    """The configuration of plain values, or all their faults: those of the algorithm's section and of the others."""
    raw = dict(given)
    faults: list[Fault] = []
    stand_in = None
    try:
        parsed = parse_params(raw[section_name], cls.kind)
        if isinstance(parsed, tuple):
            params, arguments = parsed
            built, faults = _validate(params, arguments, f"{section_name}.")
            stand_in = built if built is not None else params()
            raw[section_name] = stand_in
    except ConfigurationError as e:
        key = f"{section_name}.name" if isinstance(raw[section_name], dict) else section_name
        faults.append((key, f"{e.message}; {e.hint}"))
        raw[section_name] = AlgorithmParams()
    config, more = _validate(cls, raw)
    faults += more
    if config is not None:
        faults += _coerced(given, config)
    return config, faults


def _coerced(given: Any, built: Any, prefix: str = "") -> Iterable[Fault]:
    """Truth values that stand for numbers, and text that stands for a truth value: a slip, though it could be read."""
    for key, value in given.items():
        now = getattr(built, str(key), None)
        if isinstance(value, Mapping) and is_section(now):
            yield from _coerced(value, now, f"{prefix}{key}.")
        elif isinstance(value, list) and isinstance(now, list):
            for i, (item, part) in enumerate(zip(value, now, strict=False)):
                if isinstance(item, Mapping) and is_section(part):
                    yield from _coerced(item, part, f"{prefix}{key}.{i}.")
        elif isinstance(value, bool) and isinstance(now, (int, float)) and not isinstance(now, bool):
            yield f"{prefix}{key}", f"must be a number (got {value})"
        elif isinstance(value, str) and isinstance(now, bool):
            yield f"{prefix}{key}", f"must be true or false (got '{value}')"


def _stray(raw: Mapping[str, Any]) -> str:
    known = {f.name for c in (RLConfig, SFTConfig) for f in dataclasses.fields(c)}
    unknown = [k for k in raw if k not in known]
    return f" (unknown key '{unknown[0]}', {nearest(str(unknown[0]), known)})" if unknown else ""


def _leaves(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if is_section(value):
        return
    if isinstance(value, Mapping) and value:
        for k, v in value.items():
            yield from _leaves(v, f"{prefix}{k}.")
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{prefix}{i}.")
    else:
        yield prefix.rstrip("."), value


def resolve(config: Any, *, explicit: set[str] | None = None, where: str = "") -> Any:
    """Check how the sections fit together, refuse what has no effect, and fill what depends on the algorithm.

    Args:
        config: an `SFTConfig` or `RLConfig`.
        explicit: dotted keys that the user wrote; None takes every value that differs from its default.

    Raises:
        ConfigurationError: with every fault.
    """
    explicit = changed_keys(config) if explicit is None else explicit
    tasks, faults = _evaluation_tasks(config)
    faults += list(config.algorithm.faults(config)) + _common_faults(config)
    for key, reason in inert_keys(config).items():
        hits = sorted(p for p in explicit if p == key or p.startswith(f"{key}."))
        faults += [(hit, f"has no effect here: {reason}; remove it") for hit in hits]
    if faults:
        raise _error(faults, where)
    if config.train.learning_rate is None:
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, learning_rate=config.algorithm.learning_rate)
        )
    if tasks != config.evaluation.tasks:
        config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, tasks=tasks))
    return config


def _evaluation_tasks(config: RunConfig) -> tuple[list[Any], list[Fault]]:
    """`evaluation.tasks` with the library's tasks written out, and what is wrong with them."""
    if not config.evaluation.tasks or "evaluation.tasks" in config.algorithm.inert_keys(config):
        return config.evaluation.tasks, []
    try:
        resolved: list[Any] = import_attribute(RUN_TASKS)(config)
    except ConfigurationError as e:
        given = (e.context or {}).get("faults") or [("tasks", f"{e.message}; {e.hint}" if e.hint else e.message)]
        return config.evaluation.tasks, [(f"evaluation.{key}", sentence) for key, sentence in given]
    return resolved, []


def changed_keys(config: Any) -> set[str]:
    """Dotted keys of a configuration whose values differ from the defaults."""
    changed = set()
    for path, value in walk(config):
        owner: Any = config
        *parents, last = path.split(".")
        for part in parents:
            owner = owner[int(part)] if isinstance(owner, list) else getattr(owner, part)
        field = next((f for f in dataclasses.fields(owner) if f.name == last), None)
        if field is None or _default(field) != value:
            changed.add(path)
    return changed


def _default(field: dataclasses.Field[Any]) -> Any:
    default: Any = field.default
    if hasattr(default, "default_factory") or hasattr(default, "default"):  # pydantic's FieldInfo
        factory = default.default_factory
        default = factory() if factory else default.default
    return default


def inert_keys(config: RunConfig) -> dict[str, str]:
    """Keys that this algorithm or backend does not read, with the reason."""
    from aligntune.core.backend import BACKENDS

    keys = dict(config.algorithm.inert_keys(config))
    if config.backend in BACKENDS:  # `auto` is chosen so that it reads every key
        keys |= BACKENDS[config.backend].inert
    if config.isolation != "process":
        keys["python"] = "`isolation` is not process, so there is no worker that it could run"
    keys |= _evaluation_inert(config) | inert_health(config)
    if len(config.sources) == 1:
        prefix = "dataset" if config.kind == "sft" else "datasets.0"
        keys[f"{prefix}.weight"] = "there is only one data set"
    keys["evaluation.dataset.weight"] = "there is only one held-out data set"
    if config.train.save_steps is None:
        keys["train.save_total_limit"] = "no checkpoints are written without `train.save_steps`"
    if config.train.auto_batch and (bound := config.algorithm.bound_to_batch(config)):
        keys["train.auto_batch"] = bound
    if config.train.max_steps is not None:
        keys["train.num_epochs"] = "`train.max_steps` is set and decides the length"
    if not config.train.optimizer.startswith(("adamw", "paged_adamw")):
        keys |= {f"train.adam_{k}": f"the optimizer is {config.train.optimizer}" for k in ("beta1", "beta2", "epsilon")}
    if not (config.algorithm.uses_rewards or getattr(config, "labelled", False)):
        if not config.evaluation.tasks:
            keys["judge"] = "there is no reward that could ask it"
        keys["composition"] = "there are no rewards to compose"
    elif config.kind == "rl":
        keys |= inert_composition(config.composition)  # type: ignore[attr-defined]
    return keys


def _evaluation_inert(config: RunConfig) -> dict[str, str]:
    """Keys of evaluation in training that have nothing to act on."""
    keys: dict[str, str] = {}
    e, t, sampled = config.evaluation, config.train, config.logging
    rows = e.dataset is not None or getattr(config, "held_out", 0) > 0
    if not (rows or e.tasks):
        keys |= dict.fromkeys(
            ("evaluation.every", "evaluation.at_start"), "there is no `evaluation.dataset` or `tasks` to evaluate on"
        )
    if not (rows or e.tasks) or e.every is None:
        reason = "there is no `evaluation.every` that would evaluate in training"
        keys |= dict.fromkeys(("train.early_stopping_patience", "train.best_metric", "train.keep_best"), reason)
    if t.best_metric is None:
        keys["train.best_mode"] = "there is no `train.best_metric` whose direction it could be"
    if t.early_stopping_patience is not None and t.keep_best == "model":
        keys["train.keep_best"] = "early stopping ends with the best weights anyway"
    if sampled.sample_prompts is not None:
        keys["logging.samples"] = "`logging.sample_prompts` are the prompts"
    elif not rows:
        keys["logging.samples"] = "there is no `evaluation.dataset` whose prompts could be answered"
    if sampled.sample_prompts is None and (not rows or sampled.samples == 0):
        keys["logging.samples_at"] = "there are no prompts to answer"
    return keys


def _common_faults(config: RunConfig) -> list[Fault]:
    faults: list[Fault] = []
    if config.train.time_limit is not None:
        try:
            seconds(config.train.time_limit)
        except ValueError as error:
            faults.append(("train.time_limit", str(error)))
    every = config.evaluation.every
    if config.train.keep_best == "checkpoint" and every and not config.algorithm.resumable(config, every):
        faults.append(
            (
                "train.keep_best",
                f"writes checkpoints at evaluations, and a run cannot go on from step {every}; set evaluation.every to "
                "a multiple of what train.save_steps may be",
            )
        )
    if config.train.warmup_steps and config.train.warmup_ratio:
        faults.append(("train.warmup_ratio", "excludes train.warmup_steps; keep one of the two"))
    if config.model.quantization and config.model.peft is None:
        faults.append(
            (
                "model.quantization",
                "needs adapters, because quantised weights cannot be trained; set model.peft",
            )
        )
    if config.kind == "rl" and config.algorithm.uses_rewards:
        faults += training_faults(config)
    judge = getattr(config, "judge", None)
    return faults + ([(f"judge.{key}", sentence) for key, sentence in judge.faults()] if judge else [])


def load_config(
    source: str | Path | Mapping[str, Any] | RLConfig | SFTConfig,
    *,
    overrides: Iterable[str] = (),
    keywords: Mapping[str, Any] | None = None,
) -> RLConfig | SFTConfig:
    """Load a configuration from a file, a mapping or an object.

    Args:
        source: path of a YAML file, plain values, or a configuration.
        overrides: `key=value` strings; they beat everything else.
        keywords: dotted keys with values (see `aliases.keywords_to_keys`); UNSET ones are left out.

    Raises:
        ConfigurationError: with every fault in one message.
    """
    where = str(source) if isinstance(source, (str, Path)) else ""
    if isinstance(source, (str, Path)):
        raw = read_yaml(source)
    else:
        raw = effective(source) if isinstance(source, RunConfig) else as_mapping(source)
    raw = copy_plain(raw)
    for key, value in (keywords or {}).items():
        if value is not UNSET:
            set_key(raw, key, value)
    return build_config(apply_overrides(raw, overrides), where)


def effective(config: Any) -> dict[str, Any]:
    """Plain values of a configuration without the defaults of keys that have no effect in it."""
    plain = to_plain(config)
    changed = changed_keys(config)
    for key in inert_keys(config):
        if not any(c == key or c.startswith(f"{key}.") for c in changed):
            _drop(plain, key.split("."))
    return plain  # type: ignore[no-any-return]


def _drop(plain: Any, steps: list[str]) -> None:
    for step in steps[:-1]:
        plain = plain[int(step)] if isinstance(plain, list) else plain.get(step)
        if plain is None:
            return
    plain.pop(steps[-1], None)


def dump_config(config: Any) -> str:
    """A configuration as YAML: every key that has an effect, defaults too. It loads back to the same configuration."""
    return yaml.safe_dump(effective(config), sort_keys=False, allow_unicode=True)


def notices(raw: Mapping[str, Any]) -> list[str]:
    """One line for each old name that the configuration uses."""
    algo = raw.get("algo")
    name = algo.get("name") if isinstance(algo, Mapping) else algo
    if not isinstance(name, str) or name not in ALIASES:
        return []
    implied = ", ".join(f"{k}: {v}" for k, v in ALIAS_PARAMETERS.get(name, {}).items())
    return [f"'{name}' is now called '{ALIASES[name]}'" + (f" with {implied}" if implied else "")]
