"""From a configuration, or plain keyword arguments, to a trainer; and what there is to choose from.

    trainer = create_sft_trainer(model_name="gpt2", dataset_name="data.jsonl", backend="trl", max_steps=100)
    trainer.train()

Backend and algorithm are strings; choosing imports neither TRL nor Unsloth.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from aligntune.algorithms.base import AlgorithmParams, Kind, algorithm_names, get_algorithm, get_task, task_names
from aligntune.backends.names import trainer_name, trainer_type
from aligntune.core.arguments import trainer_arguments
from aligntune.core.backend import BACKENDS, REBOUND, BackendType, TrainingType, get_backend
from aligntune.core.backend_choice import AUTO, settle_backend, version_conflicts
from aligntune.core.config import RLConfig, RunConfig, SFTConfig, load_config
from aligntune.core.config.aliases import keywords_to_keys
from aligntune.core.config.io import effective, notices, resolve
from aligntune.core.trainer import Trainer
from aligntune.errors import AlignTuneError, ConfigurationError, EnvironmentError
from aligntune.registry import nearest
from aligntune.utils.logging import get_logger

log = get_logger(__name__)

RLAlgorithm = StrEnum("RLAlgorithm", {name.upper(): name for name in algorithm_names()})  # type: ignore[misc]
RLAlgorithm.__doc__ = "The algorithms, derived from `aligntune/algorithms/`."
ConfigSource = str | Path | Mapping[str, Any] | RunConfig


@dataclass(frozen=True)
class BackendConfig:
    """Which trainer to make.

    Attributes:
        training_type: supervised (`sft`) or preference and policy optimisation (`rl`).
        backend: `trl`, `unsloth`, or `auto`, which chooses and says why.
        algorithm: the algorithm's name; for `rl`.
        task_type: the task's name; for `sft`.
        isolation: `auto` or `process`, as in the configuration.
        fallback: the backend to use, with a warning, where `backend` is not installed; None raises instead.
    """

    training_type: TrainingType | str
    backend: BackendType | str = BackendType.TRL
    algorithm: str | None = None
    task_type: str | None = None
    isolation: Literal["auto", "process"] = "auto"
    fallback: BackendType | str | None = None

    def __post_init__(self) -> None:
        if str(self.training_type) not in ("sft", "rl"):
            raise ConfigurationError(
                f"unknown training type '{self.training_type}'",
                hint=nearest(str(self.training_type), ["sft", "rl"]),
            )
        for name in (self.backend, self.fallback):
            if name is not None and str(name) not in (*BACKENDS, AUTO):
                raise ConfigurationError(f"unknown backend '{name}'", hint=nearest(str(name), (*BACKENDS, AUTO)))
        if str(self.fallback) == AUTO:
            raise ConfigurationError("fallback must name a backend", hint="fallback='trl'")


def create_trainer(config: ConfigSource, *, expect: Kind | None = None) -> Trainer:
    """The trainer of a configuration.

    Args:
        config: a path, a mapping, or an `SFTConfig` or `RLConfig`.
        expect: "sft" or "rl" to refuse the other kind.

    Raises:
        ConfigurationError: the configuration is wrong, with every fault.
        EnvironmentError: its backend is not installed.
    """
    loaded = resolve(config) if isinstance(config, (SFTConfig, RLConfig)) else load_config(config)  # type: ignore[arg-type]
    if expect and loaded.kind != expect:
        raise ConfigurationError(
            f"the configuration has `{'algo' if loaded.kind == 'rl' else 'task'}`, which is not for this function",
            hint=f"use create_{loaded.kind}_trainer",
        )
    settled, why = settle_backend(loaded)
    if loaded.isolation == "process":
        from aligntune.core.process import ProcessTrainer

        if loaded.python is None:
            get_backend(settled.backend)
        return ProcessTrainer(loaded)  # type: ignore[return-value]
    name = trainer_name(settled)
    trainer: Trainer = trainer_type(settled.backend, settled.kind, name)(settled)
    if why:
        trainer._tell([why])
    return trainer


def create_sft_trainer(config: ConfigSource | None = None, **keywords: Any) -> Trainer:
    """A trainer for supervised fine-tuning.

    Args:
        config: a file, mapping or configuration to start from; keyword arguments beat it.
        keywords: `model_name`, `dataset_name`, `task_type`, `backend`, `output_dir`, `max_steps`, `learning_rate` ...
            (docs/configuration.md lists them all), a parameter of the task, or a dotted key with `__` for the dot.
            `dataset` and `eval_dataset` take rows in memory: a list of mappings, a `datasets.Dataset`, a `DataFrame`.

    Raises:
        ConfigurationError: an unknown argument (the nearest is named), or a wrong configuration.
    """
    return _create("sft", config, keywords, {"task": {"name": "instruction_following"}})


def create_rl_trainer(config: ConfigSource | None = None, **keywords: Any) -> Trainer:
    """A trainer for preference or policy optimisation.

    Args:
        config: a file, mapping or configuration to start from; keyword arguments beat it.
        keywords: as for `create_sft_trainer`, with `algorithm`, `rewards`, `reward_functions` and
            `reward_function_weights`, and the parameters of the algorithm (`beta`, `num_generations` ...).

    Raises:
        ConfigurationError: an unknown argument (the nearest is named), or a wrong configuration.
    """
    return _create("rl", config, keywords, {})


def _create(kind: Kind, config: ConfigSource | None, keywords: dict[str, Any], start: dict[str, Any]) -> Trainer:
    keys = keywords_to_keys(kind, _rows_named(keywords))
    if config is None:
        data: Any = {"dataset": {}} if kind == "sft" else {"datasets": [{}]}
        config = {**start, **data}
        wanted = {
            "model_name": "model.name_or_path",
            "dataset_name": "dataset.name" if kind == "sft" else "datasets.0.name",
        }
        if kind == "rl":
            wanted["algorithm"] = "algo.name"
        missing = [k for k, dotted in wanted.items() if dotted not in keys]
        if missing:
            raise ConfigurationError(f"missing arguments: {', '.join(missing)}", hint="or give config=<file>")
    elif isinstance(config, Mapping) and not {"task", "algo"} & set(config):
        config = {**start, **config}
    for notice in notices({"algo": keys.get("algo.name")}):
        warnings.warn(notice, FutureWarning, stacklevel=3)
    loaded = load_config(config, keywords=keys)  # type: ignore[arg-type]
    return create_trainer(loaded, expect=kind)


def _rows_named(keywords: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments with rows in memory (`dataset`, `eval_dataset`) written down and named by their file."""
    named = dict(keywords)
    for key, name in (("dataset", "dataset_name"), ("eval_dataset", "eval_dataset_name")):
        if key in named:
            from aligntune.data.objects import is_object, materialise

            if is_object(named[key]):
                if name in named:
                    raise ConfigurationError(f"both {key} and {name} are given", hint="keep one of the two")
                rows = named.pop(key)
                named[name] = str(materialise(rows, keywords.get("cache__dir")))
    return named


class BackendFactory:
    """The class form of the two functions, for scripts that choose by enums."""

    @staticmethod
    def create_trainer(backend_config: BackendConfig, **keywords: Any) -> Trainer:
        """The trainer that a `BackendConfig` and keyword arguments describe.

        Raises:
            EnvironmentError: the backend is not installed and there is no `fallback`.
        """
        if not isinstance(backend_config, BackendConfig):
            raise ConfigurationError(
                f"BackendFactory takes a BackendConfig, and this is {type(backend_config).__name__}",
                hint="BackendFactory.create_trainer(BackendConfig('sft'), model_name=...)",
            )
        chosen = str(backend_config.backend)
        if backend_config.fallback and chosen != AUTO and not BACKENDS[chosen].available:
            log.warning("backend '%s' is not installed: using '%s' as asked", chosen, backend_config.fallback)
            chosen = str(backend_config.fallback)
        given = {"backend": chosen, "isolation": backend_config.isolation, **keywords}
        if str(backend_config.training_type) == "sft":
            if backend_config.task_type:
                given["task_type"] = str(backend_config.task_type)
            return create_sft_trainer(**given)
        if backend_config.algorithm:
            given["algorithm"] = str(backend_config.algorithm)
        return create_rl_trainer(**given)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def class_origin(backend: str, name: str) -> str:
    """How the trainer class of an algorithm or task comes about on a backend, in a few words; nothing is imported.

    Raises:
        ConfigurationError: an unknown name.
    """
    params = get_task(name) if name in task_names() else get_algorithm(name)
    library = params.trainer.replace(":", ".")
    own = params.trainer_type is not AlgorithmParams.trainer_type
    if backend == "unsloth" and params.trainer in REBOUND:
        how = f"{library} as Unsloth rebinds it on a GPU; stock on its CPU backend, on an Unsloth model"
    elif backend == "unsloth":
        how = f"stock {library} on a plain Transformers model"
    else:
        how = f"stock {library}"
    rounds = f"; trains in rounds ({params.driver.partition(':')[0]})" if params.driver else ""
    return how + (", under AlignTune's subclass" if own else "") + rounds


def list_backends() -> dict[str, dict[str, Any]]:
    """Each backend with `available`, `version`, `install`, what it trains, and `notes` by algorithm.

    Further `classes` (by algorithm, how its trainer class comes about), `inert` (keys that it does not read, with the
    reason; the other backend reads them) and `conflicts` (installed versions that its metadata rules out). Nothing is
    imported.
    """
    return {
        name: {
            "available": info.available,
            "version": _version(info.package),
            "install": info.install,
            "algorithms": [*task_names(), *algorithm_names()],
            "notes": dict(info.notes),
            "classes": {key: class_origin(name, key) for key in (*task_names(), *algorithm_names())},
            "inert": dict(info.inert),
            "conflicts": version_conflicts() if name == "unsloth" else [],
        }
        for name, info in BACKENDS.items()
    }


def get_backend_status() -> dict[str, dict[str, Any]]:
    """The same as `list_backends`, under the paper's name."""
    return list_backends()


def validate_backend_selection(backend: str, algorithm: str | None = None) -> str:
    """Check that a backend exists and is installed, and that the algorithm or task exists; returns the backend's name.

    Raises:
        ConfigurationError: an unknown name.
        EnvironmentError: the backend's package is missing.
    """
    get_backend(str(backend))
    if algorithm is not None and algorithm not in task_names():
        get_algorithm(str(algorithm))
    return str(backend)


def list_algorithms() -> dict[str, dict[str, str]]:
    """Each algorithm and task with its `kind`, one-line `summary` and the `data` that it needs."""
    found: dict[str, dict[str, str]] = {}
    for cls in [*map(get_task, task_names()), *map(get_algorithm, algorithm_names())]:
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        found[cls.key] = {"kind": cls.kind, "summary": summary, "data": str(cls.data)}
    return found


def list_rewards() -> list[Any]:
    """The registered rewards; see `aligntune.rewards.RewardRegistry.list_rewards`."""
    from aligntune.rewards import RewardRegistry

    return RewardRegistry.list_rewards()  # type: ignore[no-any-return]


def describe(config: RunConfig) -> dict[str, Any]:
    """What a configuration will do, as plain values and without importing torch: for `--dry-run`."""
    config, why = settle_backend(config)
    t, params = config.train, config.algorithm
    batch = t.per_device_batch_size * t.gradient_accumulation_steps
    arithmetic: dict[str, Any] = {
        "per_device_batch_size": t.per_device_batch_size,
        "gradient_accumulation_steps": t.gradient_accumulation_steps,
        "sequences_per_step_and_device": batch,
        "length": f"{t.max_steps} steps" if t.max_steps else f"{t.num_epochs:g} epochs",
    }
    if params.uses_rewards:
        generations = params.num_generations  # type: ignore[attr-defined]
        arithmetic["completions_per_prompt"] = generations
        arithmetic["prompts_per_step_and_device"] = batch / generations
    device, precision = config.model.device, config.model.precision
    arguments = trainer_arguments(config, device=device, precision=precision, output_dir=config.output_dir)
    for key in ("bf16", "fp16", "use_cpu"):
        if "auto" in (device, precision):
            arguments[key] = "chosen from the hardware"
    return {
        "algorithm": params.key,
        "kind": config.kind,
        "backend": config.backend,
        "notes": [why] if why else [],
        "backend_available": BACKENDS[config.backend].available,
        "trainer": trainer_name(config),
        "library_class": params.trainer.replace(":", "."),
        "data_schema": str(params.data),
        "batch": arithmetic,
        "config": effective(config),
        "arguments": arguments,
    }


__all__ = [
    "AlignTuneError", "BackendConfig", "BackendFactory", "BackendType", "EnvironmentError", "RLAlgorithm",
    "TrainingType", "create_rl_trainer", "create_sft_trainer", "create_trainer", "describe",
    "get_backend_status", "list_algorithms", "list_backends", "list_rewards", "validate_backend_selection",
]  # fmt: skip
