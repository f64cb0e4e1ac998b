"""What a comparison runs: arms from `key=[a,b]`, each with the same seeds, data and data order.

    plan = make_plan("dpo.yaml", ["backend=[trl,unsloth]", "algo.beta=[0.1,0.5]", "train.max_steps=50"], seeds=3)
    [arm.name for arm in plan.arms]      # ['backend=trl algo.beta=0.1', 'backend=trl algo.beta=0.5', ...]

A value in brackets is an axis, anything else an override of all arms. Every arm's configuration is checked before any
arm runs, and the file is read once: what is written into it afterwards changes no run. All arms of a seed share
`train.seed`, so they see the same rows in the same order; the order of the runs turns with the seed (first a b c, then
b c a), so that a machine that warms up or tires does not favour an arm.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aligntune.core.config.io import build_config, effective
from aligntune.core.config.reading import apply_overrides, as_mapping, copy_plain, read_yaml
from aligntune.core.config.root import RunConfig
from aligntune.errors import AlignTuneError, ConfigurationError

MOST_RUNS = 200
"""Runs beyond which a plan is taken for a slip of the pen."""
FIXED = {
    "train.seed": "the seeds are those of --seeds",
    "output_dir": "each run has a folder below --output-dir",
    "logging.steps": "every step is logged, because timings are read from the log",
}
"""Keys that a comparison sets itself, and why."""
CONFIGURATIONS = "configurations"
"""Where a described plan has the resolved settings of each arm."""


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared.

    Attributes:
        name: its choices in words, unique in the plan.
        slug: its folder.
        choices: dotted key to value.
    """

    name: str
    slug: str
    choices: Mapping[str, Any]

    @property
    def overrides(self) -> list[str]:
        """The choices as `key=value`."""
        return [f"{key}={written(value)}" for key, value in self.choices.items()]


@dataclass(frozen=True)
class Plan:
    """Arms and seeds.

    Attributes:
        source: the run's file, or its plain values.
        overrides: `key=value` of every arm.
        arms: at least two; the first one is what the others are compared with.
        seeds: of training.
        output_dir: of the comparison.
        raw: the plain values of the source, as they were when the plan was made.
    """

    source: str | Mapping[str, Any]
    overrides: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    output_dir: Path
    raw: Mapping[str, Any] = field(repr=False)

    def folder(self, arm: Arm, seed: int) -> Path:
        """The run folder of an arm and a seed."""
        return self.output_dir / arm.slug / f"seed-{seed}"

    def config(self, arm: Arm, seed: int) -> RunConfig:
        """The resolved configuration of one run.

        Raises:
            ConfigurationError: as `build_config`.
        """
        fixed = [f"train.seed={seed}", f"output_dir={self.folder(arm, seed)}", "logging.steps=1"]
        where = self.source if isinstance(self.source, str) else ""
        return build_config(apply_overrides(copy_plain(self.raw), [*self.overrides, *arm.overrides, *fixed]), where)

    def order(self) -> list[tuple[Arm, int]]:
        """The runs in the order in which they are made."""
        n = len(self.arms)
        return [(self.arms[(i + k) % n], seed) for i, seed in enumerate(self.seeds) for k in range(n)]

    def describe(self) -> dict[str, Any]:
        """Plain values: what a resumed comparison must agree on."""
        source = self.source if isinstance(self.source, str) else dict(self.source)
        return {
            "source": source,
            "overrides": list(self.overrides),
            "arms": [{"name": a.name, "slug": a.slug, "choices": dict(a.choices)} for a in self.arms],
            "seeds": list(self.seeds),
            CONFIGURATIONS: {arm.name: self._settings(arm) for arm in self.arms},
        }

    def _settings(self, arm: Arm) -> dict[str, Any]:
        """The resolved settings of an arm as plain values, without those that each of its runs has for itself."""
        plain = effective(self.config(arm, self.seeds[0]))
        plain.pop("output_dir", None)
        plain.get("train", {}).pop("seed", None)
        return plain


def make_plan(
    source: str | Path | Mapping[str, Any],
    settings: Sequence[str] = (),
    *,
    axes: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | Sequence[int] = 3,
    output_dir: str | Path,
) -> Plan:
    """Check every arm, and lay out the runs.

    Args:
        source: a run's file, or its plain values.
        settings: `key=value` for all arms, `key=[a,b]` for an axis.
        axes: further axes, dotted key to values.
        seeds: how many (42, 43, ...), or which.
        output_dir: of the comparison.

    Raises:
        ConfigurationError: fewer than two arms, more than `MOST_RUNS` runs, an axis with one value, or an arm whose
            configuration is wrong (the arm is named).
    """
    found: dict[str, list[Any]] = {key: list(values) for key, values in (axes or {}).items()}
    overrides = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigurationError(f"'{setting}' is no setting", hint="write key=value, or key=[a,b] for an axis")
        if key in FIXED:
            raise ConfigurationError(f"a comparison sets {key} itself", hint=FIXED[key])
        parsed = _parsed(setting, value)
        if isinstance(parsed, list) and key not in found:
            found[key] = parsed
        elif isinstance(parsed, list):
            raise ConfigurationError(f"'{key}' is an axis twice", hint="name all of its values in one place")
        else:
            overrides.append(setting)
    chosen = tuple(range(42, 42 + seeds)) if isinstance(seeds, int) else tuple(seeds)
    _check_size(found, chosen)
    arms = _arms(found)
    plan = Plan(
        source if isinstance(source, Mapping) else str(source),
        tuple(overrides),
        arms,
        chosen,
        Path(output_dir).expanduser().absolute(),
        copy_plain(read_yaml(source) if isinstance(source, (str, Path)) else as_mapping(source)),
    )
    for arm in arms:
        try:
            plan.config(arm, chosen[0])
        except AlignTuneError as e:
            raise type(e)(f"arm {arm.name}: {e.message}", hint=e.hint, context=e.context) from e
    return plan


def _parsed(setting: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise ConfigurationError(f"'{setting}' cannot be read: {e}", hint="write key=value, or key=[a,b]") from e


def _check_size(axes: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> None:
    if not axes:
        raise ConfigurationError(
            "nothing is compared: there is no axis",
            hint="name one: --backends trl,unsloth, --algorithms dpo,simpo, or any key=[a,b]",
        )
    for key, values in axes.items():
        if len(values) < 2:
            raise ConfigurationError(f"the axis {key} has {len(values)} value", hint=f"write {key}=[a,b]")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigurationError(f"the seeds are {list(seeds)}", hint="give at least one, and each once")
    runs = len(seeds)
    for values in axes.values():
        runs *= len(values)
    if runs > MOST_RUNS:
        raise ConfigurationError(f"this is {runs} runs", hint=f"compare at most {MOST_RUNS}: fewer values or seeds")


def _arms(axes: Mapping[str, Sequence[Any]]) -> tuple[Arm, ...]:
    names, taken = [], Counter[str]()
    arms = []
    for values in itertools.product(*axes.values()):
        choices = dict(zip(axes, values, strict=True))
        name = " ".join(f"{key}={written(value)}" for key, value in choices.items())
        taken[name] += 1
        if taken[name] > 1:  # the same arm twice is how a comparison is tested
            name = f"{name} ({taken[name]})"
        names.append(name)
        arms.append(Arm(name, _slug(name), choices))
    clashes = [slug for slug, count in Counter(a.slug for a in arms).items() if count > 1]
    return tuple(
        Arm(a.name, f"{a.slug}-{i + 1}" if a.slug in clashes else a.slug, a.choices) for i, a in enumerate(arms)
    )


def written(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, str) and yaml.safe_load(value) == value:
        return value
    return str(yaml.safe_dump(value, default_flow_style=True, width=10_000)).removesuffix("\n...\n").strip()


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=_-]+", "-", name).strip("-.")[:80] or "arm"
