"""What an algorithm is: its parameters, the data it needs, the TRL class that trains it, and the values it sends there.

    @algorithm("dpo", trainer="trl:DPOTrainer", args="trl:DPOConfig", data=Schema.PREFERENCE)
    class DPO(AlgorithmParams):
        beta: PositiveFloat = 0.1
        \"\"\"KL strength (Rafailov et al. 2023).\"\"\"

        def arguments(self, config):
            return {"beta": self.beta}

The class names are strings: nothing here imports torch or TRL. A backend resolves them after it has been prepared,
so one definition serves both backends.

A definition may stand in a user's own file: `algo: {name: file.py:Class}` reads it, and a process of its own finds it
again by that place (`AlgorithmParams.place`).
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform

from aligntune.core.config.base import section
from aligntune.errors import ConfigurationError
from aligntune.registry import Registry, import_attribute, nearest

Kind = Literal["sft", "rl"]
Head = Literal["causal_lm", "sequence_classification", "token_classification"]
P = TypeVar("P")


class Schema(StrEnum):
    """The canonical form of rows that an algorithm trains on."""

    TEXT = "text"
    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt_completion"
    PREFERENCE = "preference"
    UNPAIRED = "unpaired"
    PROMPT = "prompt"
    CLASSIFICATION = "classification"
    TOKENS = "tokens"


@section
class AlgorithmParams:
    """Base of every algorithm's parameters.

    Class attributes set by the decorator: `key` (its name), `kind` ("sft" or "rl"), `trainer` and `args` (lazy
    names of the TRL classes), `data` (the schema). Set by the class itself: `learning_rate` (its default, with the
    source in a comment), `inert` (dotted keys of the other sections that it does not read: setting one of
    them is refused), `head` (what stands on the model's trunk), `driver` (lazy name of a function `(trainer,
    checkpoint) -> TrainResult` that takes the place of one library loop, for algorithms of several rounds) and
    `evaluator` (lazy name of a function `(trainer, rows) -> dict` that takes the place of the schema's measures).
    """

    key: ClassVar[str] = ""
    place: ClassVar[str] = ""
    """`file.py:Class` or `package.module:Class` of a definition outside this package: what a configuration that is
    written down names, so that another process finds it. Empty where no other process could."""
    kind: ClassVar[Kind] = "rl"
    trainer: ClassVar[str] = ""
    args: ClassVar[str] = ""
    data: ClassVar[Schema] = Schema.TEXT
    learning_rate: ClassVar[float] = 2e-5
    inert: ClassVar[dict[str, str]] = {}
    uses_rewards: ClassVar[bool] = False
    bounded_rewards: ClassVar[bool] = False
    """Whether totals must have a finite range."""
    head: ClassVar[Head] = "causal_lm"
    driver: ClassVar[str] = ""
    evaluator: ClassVar[str] = ""
    fixed: ClassVar[dict[str, Any]] = {}
    """Options of the library that the algorithm itself decides: they are no fields, and setting one is refused."""
    limits: ClassVar[dict[str, str]] = {}
    """Why a parameter has its lower limit, and what takes a smaller value: the hint where one is too small."""

    def arguments(self, config: Any) -> dict[str, Any]:
        """Values for the TRL configuration class beyond the common ones (`core.arguments`)."""
        return {}

    def late_arguments(self, config: Any) -> dict[str, Any]:
        """Values set on the configuration object after its construction, because its constructor refuses them."""
        return {}

    def arrange(self, rows: Any, config: Any) -> tuple[Any, list[str]]:
        """The training rows (a `datasets.Dataset`) as the library's trainer gets them, and a sentence for each change.

        Raises:
            ValidationError: the algorithm cannot learn from these rows.
        """
        return rows, []

    def check(self, trainer: Any) -> None:
        """Refuse what only the data, the model or the rewards can show, before the run's folder is written.

        Args:
            trainer: the run (`aligntune.core.trainer.Trainer`), with its rows and its model loaded.

        Raises:
            AlignTuneError: with the fix.
        """

    @property
    def splits_rewards(self) -> bool:
        """Whether the trainer gets each reward apart, in place of their sum."""
        return False

    @property
    def invariance(self) -> frozenset[str]:
        """What may be done to all totals without changing an update: "shift" and "scale" of all of them by one number,
        "group shift" and "group scale" by one for each prompt's answers."""
        return frozenset()

    @property
    def group_size(self) -> int | None:
        """Answers that are sampled for one prompt; None for algorithms that sample none."""
        size = getattr(self, "num_generations", self.fixed.get("num_generations"))
        return None if size is None else int(size)

    def rewards(self, composite: Any) -> Any:
        """The run's `CompositeReward` as this algorithm adds its components up."""
        return composite

    def trainer_type(self, base: type) -> type:
        """The class that trains, made of the library's (or of what a backend has put in its place)."""
        return base

    def trainer_kwargs(self, trainer: Any) -> dict[str, Any]:
        """Arguments of the library's trainer beyond model, args, data, tokenizer, callbacks and reward functions.

        Args:
            trainer: the run (`aligntune.core.trainer.Trainer`).
        """
        return {}

    def attach(self, hf: Any, trainer: Any) -> None:
        """Finish the library's trainer `hf` after its construction."""

    def resumable(self, config: Any, step: int) -> bool:
        """Whether a run that stops after this optimizer step can go on exactly."""
        return True

    def bound_to_batch(self, config: Any) -> str | None:
        """Why the update would change if a batch were split and its gradients accumulated; None if it would not."""
        return None

    def progress(self, config: Any) -> str | None:
        """What a run without a checkpoint has done already and keeps, so that `--resume` goes on; None for nothing."""
        return None

    def inert_keys(self, config: Any) -> dict[str, str]:
        """Dotted keys without effect in this configuration, with the reason; setting one is refused.

        Those of the class (`inert`), and in a subclass those that another parameter switches off.
        """
        return self.inert

    def notes(self, config: Any) -> list[str]:
        """Sentences that the user should read before the run, as where settings have no effect together."""
        return []

    def faults(self, config: Any) -> list[tuple[str, str]]:
        """Contradictions between this section and others, as (dotted key, sentence)."""
        return []


ALGORITHMS: Registry[type[AlgorithmParams]] = Registry("algorithm", replaceable=False)
TASKS: Registry[type[AlgorithmParams]] = Registry("task", replaceable=False)


@dataclass_transform(kw_only_default=True)
def _register(
    registry: Registry[type[AlgorithmParams]], kind: Kind, key: str, trainer: str, args: str, data: Schema
) -> Callable[[type[P]], type[P]]:
    def decorate(cls: type[P]) -> type[P]:
        built: Any = section(cls)
        built.key, built.kind, built.trainer, built.args, built.data = key, kind, trainer, args, data
        built.place = _place(sys._getframe(1), cls.__qualname__)
        again = key in registry and bool(built.place) and registry.get(key).place == built.place  # an edited file
        registry.add(key, built, replace=again)
        return built  # type: ignore[no-any-return]

    return decorate


def _place(frame: FrameType, name: str) -> str:
    """Where a class that is being defined can be found again, by the frame that defines it; "" for our own."""
    module, package = str(frame.f_globals.get("__name__")), frame.f_globals.get("__package__")
    file = Path(frame.f_code.co_filename)
    if module.startswith("aligntune.") or "<locals>" in name:
        return ""
    if package:
        spec = frame.f_globals.get("__spec__")  # that of `python -m package.module` has the name that __main__ hides
        return f"{spec.name if spec is not None else module}:{name}"
    return f"{file.absolute()}:{name}" if file.suffix == ".py" and file.is_file() else ""


@dataclass_transform(kw_only_default=True)
def algorithm(key: str, *, trainer: str, args: str, data: Schema) -> Callable[[type[P]], type[P]]:
    """Register a preference or policy algorithm under `key` (the value of `algo.name`)."""
    return _register(ALGORITHMS, "rl", key, trainer, args, data)


@dataclass_transform(kw_only_default=True)
def task(
    key: str, *, trainer: str = "trl:SFTTrainer", args: str = "trl:SFTConfig", data: Schema
) -> Callable[[type[P]], type[P]]:
    """Register a supervised task under `key` (the value of `task.name`)."""
    return _register(TASKS, "sft", key, trainer, args, data)


def explain_unknown(cls: type[AlgorithmParams], key: str) -> str | None:
    """What to say of a key that is no field of `cls`, but of other algorithms, or that `cls` fixes; else None."""
    _import_all()
    own, other = (ALGORITHMS, TASKS) if cls.kind == "rl" else (TASKS, ALGORITHMS)
    having = _having(own, key) or _having(other, key)
    if key in cls.fixed:
        allowed = f"; algorithms that leave it open: {', '.join(having)}" if having else ""
        return f"{cls.key} fixes it ({cls.fixed[key]}){allowed}"
    return f"is not an option of {cls.key}; algorithms that have it: {', '.join(having)}" if having else None


def _having(registry: Registry[type[AlgorithmParams]], key: str) -> list[str]:
    """Names of the algorithms with a parameter `key`."""
    return [n for n in registry.names() if key in {f.name for f in fields(registry.get(n))}]  # type: ignore[arg-type]


@cache
def _import_all() -> None:
    """Import every module of this package, which registers what is in them (pure Python, milliseconds)."""
    for package in ("aligntune.algorithms", "aligntune.algorithms.sft"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")


ALIASES: dict[str, str] = {
    "drgrpo": "dr_grpo",
    "reinforce++": "reinforce_pp",
    "reinforce_plus_plus": "reinforce_pp",
    "bolt": "pace",
    "counterfact_grpo": "counterfactual_grpo",
    "gbmpo_l2": "gbmpo",
    "gbmpo_l2kl": "gbmpo",
    "gbmpo_probl2": "gbmpo",
    "gbmpo_probl2kl": "gbmpo",
    "distillation": "gkd",
    "metaes": "meta_es",
    "nmgrpo": "neural_mirror",
}
"""Old names that scripts use, to today's; using one gives a line of notice."""
ALIAS_PARAMETERS: dict[str, dict[str, Any]] = {
    "distillation": {"lmbda": 0.0},
    "gbmpo_l2": {"divergence": "l2"},
    "gbmpo_l2kl": {"divergence": "l2_kl"},
    "gbmpo_probl2": {"divergence": "prob_l2"},
    "gbmpo_probl2kl": {"divergence": "prob_l2_kl"},
}
"""What an old name says beyond the algorithm's name."""


def get_algorithm(name: str) -> type[AlgorithmParams]:
    """The parameter class of an algorithm: a registered name, or `file.py:Class` of a user's own.

    Raises:
        ConfigurationError: unknown; the hint names the nearest, or the section where a task belongs.
    """
    _import_all()
    name = ALIASES.get(name, name)
    if ":" in name or name.endswith(".py"):
        return _own(name, "rl")
    if name not in ALGORITHMS and (name in TASKS or name == "sft"):
        raise ConfigurationError(
            f"'{name}' is a supervised task, not an RL algorithm",
            hint="write `task: " + (name if name != "sft" else "instruction_following") + "` in place of `algo:`",
        )
    return ALGORITHMS.get(name)


def get_task(name: str) -> type[AlgorithmParams]:
    """The parameter class of a supervised task: a registered name, or `file.py:Class` of a user's own.

    Raises:
        ConfigurationError: unknown; the hint names the nearest.
    """
    _import_all()
    if ":" in name or name.endswith(".py"):
        return _own(name, "sft")
    if name not in TASKS and name in ALGORITHMS:
        raise ConfigurationError(
            f"'{name}' is an algorithm, not a task", hint=f"write `algo: {name}` in place of `task:`"
        )
    return TASKS.get(name)


def _own(name: str, kind: Kind) -> type[AlgorithmParams]:
    """The definition in a user's file or package; what this process has from there already is not read again."""
    place, _, attribute = name.rpartition(":") if ":" in name else (name, "", "")
    full = f"{Path(place).expanduser().absolute() if place.endswith('.py') else place}:{attribute}"
    label, registry = ("algorithm", ALGORITHMS) if kind == "rl" else ("task", TASKS)
    if not attribute:
        raise ConfigurationError(f"{label} '{name}' names no class", hint="write file.py:Class")
    if (running := _of_script(registry, full)) is not None:
        return running
    found = import_attribute("aligntune.utils.user_code:load_function")(name, label)
    if not (isinstance(found, type) and issubclass(found, AlgorithmParams) and "key" in vars(found)):
        raise ConfigurationError(
            f"{name} is no {label}: it must be a class that is decorated with @{label}(...)",
            hint="docs/algorithms.md, 'One of your own', shows one in a file",
        )
    if found.kind != kind:
        here, there = ("algo", "task") if kind == "rl" else ("task", "algo")
        raise ConfigurationError(f"{name} is no {label}", hint=f"write `{there}:` in place of `{here}:`")
    return found


def _of_script(registry: Registry[type[AlgorithmParams]], place: str) -> type[AlgorithmParams] | None:
    """What the running script itself has registered; reading its file again would define everything twice."""
    for key in registry.names():
        found = registry.get(key)
        if found.place == place and not found.__module__.startswith("aligntune_"):
            return found
    return None


def algorithm_names() -> list[str]:
    """Names of all registered algorithms, sorted."""
    _import_all()
    return ALGORITHMS.names()


def task_names() -> list[str]:
    """Names of all registered supervised tasks, sorted."""
    _import_all()
    return TASKS.names()


def parse_params(value: Any, kind: Kind) -> Any:
    """`"grpo"`, `{name: grpo, beta: 0.1}` or a parameter object, as (class, keyword arguments) or the object.

    Raises:
        ConfigurationError: no name, or an unknown one.
    """
    if isinstance(value, AlgorithmParams):
        return value
    raw = {"name": value} if isinstance(value, str) else value
    get, names = (get_algorithm, algorithm_names) if kind == "rl" else (get_task, task_names)
    label = "algo" if kind == "rl" else "task"
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise ConfigurationError(
            f"{label} needs a name", hint=f"write `{label}: {{name: ...}}`; " + nearest("", names())
        )
    name = raw["name"]
    implied = ALIAS_PARAMETERS.get(name, {})
    for key, value in implied.items():
        if raw.get(key, value) != value:
            raise ConfigurationError(
                f"'{name}' stands for {ALIASES[name]} with {key}: {value}, and {key} is {raw[key]!r}",
                hint=f"write `name: {ALIASES[name]}`",
            )
    return get(name), {**implied, **{k: v for k, v in raw.items() if k != "name"}}
