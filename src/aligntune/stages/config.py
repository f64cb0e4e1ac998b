"""The file of `aligntune run`: values that stages share, and the stages in the order in which they are made.

    output_dir: runs/assistant
    values: {model: Qwen/Qwen3-0.6B, data: support.csv}
    stages:
      - {name: split, kind: split, config: {dataset: "${values.data}", test: 0.1}}
      - name: sft
        kind: train
        config:
          task: instruction_following
          model: {name_or_path: "${values.model}"}
          dataset: {name: "${stages.split.train}"}
      - {name: dpo, kind: train, file: dpo.yaml, config: {model: {name_or_path: "${stages.sft.model}"}}}

>>> [stage.name for stage in load_stages("assistant.yaml", ["stages.sft.train.max_steps=20"]).stages]
['split', 'sft', 'dpo']

What a stage's `config` means is checked by the kind (`aligntune.stages.kinds`), all stages at once (`plan`).
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat

from aligntune.core.config.base import section
from aligntune.core.config.io import parse_section
from aligntune.core.config.reading import apply_overrides, copy_plain, merge, read_yaml
from aligntune.core.config.sections import Dataset, Seed, Text
from aligntune.errors import ConfigurationError
from aligntune.registry import nearest

KEYS = "docs/stages.md lists the keys"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
REPLACED = "replaced"
"""Folder of stages that were made again."""
Kind = Literal["split", "train", "pairs", "reward_model", "evaluate", "compare", "report"]


@section
class StageConfig:
    """One stage."""

    name: str
    """Its name: a letter, then letters, digits, `_` and `-`. References and folders use it."""
    kind: Kind
    """What it does; docs/stages.md says what each kind makes."""
    file: Text | None = None
    """A configuration file, relative to the stages file, that `config` changes."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The configuration, as the command of the kind reads it, without its output."""


@section
class StagesConfig:
    """Stages, from first to last."""

    stages: Annotated[list[StageConfig], MinLen(1)]
    """The stages, in the order in which they are made; each may name results of earlier ones."""
    values: dict[str, Any] = Field(default_factory=dict)
    """Values that the stages share, named as `${values.NAME}`."""
    output_dir: Text = "runs/stages"
    """Folder of all stages; each has a folder `<number>-<name>` in it (ours)."""
    numbered: bool = True
    """Whether the folders of stages begin with their number (ours); without, a folder is called as its stage is."""
    title: str | None = None
    """Heading of the report; None takes the folder's name."""
    lead: str = ""
    """A paragraph under the heading of the report: what is done here."""


@section
class SplitConfig:
    """`kind: split`: training and test rows of one source, as `aligntune data split` makes them."""

    dataset: Dataset
    """The source."""
    test: PositiveFloat = 0.1
    """Share of the rows that are held out, or a number of rows (as `aligntune data split`)."""
    by: Text | None = None
    """Column of the classes, for `stratify` and `balance`."""
    group: Text | None = None
    """Column whose equal values stay in one part, so that no conversation or question is in both."""
    stratify: bool = False
    """Hold out each class in proportion."""
    balance: bool = False
    """Leave out training rows until every class has as many as the smallest."""
    seed: Seed = 42
    """Seed of the draw (as `aligntune data split`)."""


@section
class SeveralModels:
    """What `kind: evaluate` has beside an evaluation's own keys, to measure several models on the same tasks."""

    models: dict[str, Text] = Field(default_factory=dict)
    """Name to folder or hub id; each is compared with the first. Empty: the file's own `model` alone."""
    margin: PositiveFloat | None = None
    """Differences up to this do not matter: say which are equivalent (as `aligntune eval --margin`)."""
    by: Text | None = None
    """Column whose values give a table each of the headline metric, such as an intent."""
    against: dict[str, str] = Field(default_factory=dict)
    """Task to another task on the same rows, such as `{two_shot: zero_shot}`: each model's paired difference."""


def _values(value: Any) -> Any:
    return {k: v if isinstance(v, list) else [v] for k, v in value.items()} if isinstance(value, dict) else value


@section
class CompareConfig:
    """`kind: compare`: arms over seeds, as `aligntune compare` runs them."""

    run: Annotated[dict[str, Any], MinLen(1)]
    """The run's configuration; a stage's `file` is read into it."""
    axes: Annotated[dict[str, list[Any]], BeforeValidator(_values), MinLen(1)]
    """Dotted key to the values that are compared."""
    seeds: int | list[int] = 3
    """How many training seeds, or which (as `aligntune compare`)."""
    margin: PositiveFloat | dict[str, PositiveFloat] | None = None
    """Largest difference that does not matter, for all held-out values or by name."""
    ratio_margin: NonNegativeFloat = 0.05
    """The same for times and memory, as a share (as `aligntune compare`)."""


@section
class ReportConfig:
    """`kind: report`: one page over the stages before it."""

    title: str | None = None
    """Its heading; None takes the file's."""
    lead: str | None = None
    """The paragraph under it; None takes the file's."""
    about: dict[str, str] = Field(default_factory=dict)
    """Stage to a sentence about it."""


def load_stages(source: str | Path | Mapping[str, Any] | StagesConfig, overrides: Iterable[str] = ()) -> StagesConfig:
    """The typed stages of a file, with the files that stages name read and merged below their `config`.

    Args:
        source: a YAML file, plain values, or a `StagesConfig`.
        overrides: `key=value`; `stages.NAME.KEY=...` changes the configuration of a stage, `values.NAME=...` a value.

    Raises:
        ConfigurationError: unknown keys or kinds, two stages with one name, a file that is not there.
    """
    where = str(source) if isinstance(source, (str, Path)) else ""
    raw: dict[str, Any]
    if isinstance(source, StagesConfig):
        raw = copy_plain(dataclasses.asdict(source))
    else:
        raw = read_yaml(source) if isinstance(source, (str, Path)) else copy_plain(source)
    raw = apply_overrides(raw, _by_index(raw, overrides))
    config = parse_section(StagesConfig, raw, where, hint=KEYS)
    _check_names(config, where)
    beside = Path(source).parent if isinstance(source, (str, Path)) else Path()
    return dataclasses.replace(config, stages=[_with_file(stage, beside) for stage in config.stages])


def _by_index(raw: Mapping[str, Any], overrides: Iterable[str]) -> list[str]:
    """`stages.NAME.KEY=...` as `stages.2.config.KEY=...`."""
    listed = raw.get("stages") if isinstance(raw.get("stages"), list) else []
    names = [str(stage.get("name")) if isinstance(stage, Mapping) else "" for stage in listed or []]
    found = []
    for item in overrides:
        dotted, equals, value = item.partition("=")
        parts = dotted.strip().split(".")
        if equals and parts[0] == "stages":
            if len(parts) < 3 or parts[1] not in names:
                name = parts[1] if len(parts) > 1 else ""
                raise ConfigurationError(
                    f"'{item}' names no setting of a stage",
                    hint=f"write stages.NAME.KEY=value; {nearest(name, names)}",
                )
            inside = parts[2:] if parts[2:] in (["file"], ["kind"], ["name"]) else ["config", *parts[2:]]
            dotted = ".".join(["stages", str(names.index(parts[1])), *inside])
        found.append(f"{dotted}{equals}{value}")
    return found


def _check_names(config: StagesConfig, where: str) -> None:
    prefix = f"{where}: " if where else ""
    for i, stage in enumerate(config.stages):
        if not NAME.fullmatch(stage.name):
            raise ConfigurationError(
                f"{prefix}stages.{i}.name: '{stage.name}' cannot name a folder and a reference",
                hint="begin with a letter; letters, digits, '_' and '-' may follow",
            )
        if not config.numbered and stage.name.lower() == REPLACED:
            raise ConfigurationError(
                f"{prefix}stages.{i}.name: the folder '{REPLACED}' is where stages that were made again are kept",
                hint="choose another name, or leave numbered out",
            )
    twice = [name for name, count in Counter(s.name.lower() for s in config.stages).items() if count > 1]
    if twice:
        places = [i + 1 for i, stage in enumerate(config.stages) if stage.name.lower() == twice[0]]
        raise ConfigurationError(
            f"{prefix}two stages have the name '{twice[0]}' (numbers {places[0]} and {places[1]})",
            hint="give each stage its own name",
        )


def _with_file(stage: StageConfig, beside: Path) -> StageConfig:
    if stage.file is None:
        return stage
    path = beside / Path(stage.file).expanduser()
    raw = read_yaml(path)
    for key in ("output_dir", "output") if stage.kind != "compare" else ("output_dir",):
        raw.pop(key, None)  # where an ordinary file writes; a stage has its own folder
    if stage.kind == "compare":
        below: dict[str, Any] = {"run": raw}
    else:
        below = raw
    return dataclasses.replace(stage, config=merge(below, stage.config), file=None)
