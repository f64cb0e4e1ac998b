"""What `aligntune run` would do: every stage with its folder, its needs and its resolved configuration, all checked.

    plan = make_plan("assistant.yaml", ["values.data=support.csv"])
    [(stage.name, stage.folder) for stage in plan.stages]

Paths of results are known before they exist (`<output_dir>/<number>-<name>/...`), so every stage's configuration is
checked as it will be run, before the first one starts. All faults come in one message, each with its stage.

It reads no rows and loads no model; what only the data can tell is found when the stage begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune.errors import AlignTuneError, ConfigurationError, EnvironmentError
from aligntune.registry import nearest
from aligntune.stages.config import StagesConfig, load_stages
from aligntune.stages.kinds import KINDS, RECORD, StageKind
from aligntune.stages.references import Reference, find, resolve

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
"""Endings of data files; a name with one of them is a file's, not one on the hub."""
PLACES = ("name", "name_or_path", "path", "dataset", "datasets", "reference_model", "reward_model", "opponent")
"""Keys whose values are files, folders or hub ids that a stage reads."""
FUNCTIONS = ("type", "transform", "rewards", "kind", "algo", "task")
"""Keys whose values may be `file.py:function` or `file.py:Class`."""
CODE = re.compile(r".*\.py:[A-Za-z_][\w.]*", re.DOTALL)
"""A function or class in a file, wherever it is named (`algo.name`)."""


@dataclass(frozen=True)
class Planned:
    """One stage of a plan.

    Attributes:
        name: of the stage.
        kind: its configuration in its folder.
        kind_name: what it does.
        folder: of the stage.
        symbolic: its configuration with values written in and references to stages as they are written.
        needs: names of the stages whose results it reads, in the plan's order.
    """

    name: str
    kind_name: str
    kind: StageKind
    folder: Path
    symbolic: Mapping[str, Any]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Stages in the order in which they are made."""

    config: StagesConfig
    output_dir: Path
    stages: tuple[Planned, ...]
    source: str = ""
    overrides: tuple[str, ...] = field(default=())

    @property
    def names(self) -> list[str]:
        """Of the stages."""
        return [stage.name for stage in self.stages]

    def __getitem__(self, name: str) -> Planned:
        found = next((stage for stage in self.stages if stage.name == name), None)
        if found is None:
            raise ConfigurationError(f"no stage is called '{name}'", hint=nearest(name, self.names))
        return found

    def dependents(self, name: str) -> set[str]:
        """The stage and every later one that reads its results, directly or through others."""
        found = {self[name].name}
        for stage in self.stages:
            if found & set(stage.needs):
                found.add(stage.name)
        return found

    @property
    def command(self) -> str:
        """The command line that goes on with this plan."""
        import shlex

        if not self.source:
            return "run_stages(...) again"
        return shlex.join(["aligntune", "run", self.source, *self.overrides])


def make_plan(source: str | Path | Mapping[str, Any] | StagesConfig, overrides: Iterable[str] = ()) -> Plan:
    """Lay out and check every stage.

    Args:
        source: a stages file, plain values, or a `StagesConfig`.
        overrides: see `load_stages`.

    Raises:
        ConfigurationError: with every fault of every stage; first of all names and references.
    """
    overrides = tuple(overrides)
    config = load_stages(source, overrides)
    out = Path(config.output_dir).expanduser().absolute()
    needs = _check_references(config)
    stages: list[Planned] = []
    results: dict[str, dict[str, Any]] = {}
    faults: list[tuple[str, AlignTuneError]] = []
    for i, stage in enumerate(config.stages):
        folder = _folder(out, i + 1, stage.name) if config.numbered else out / stage.name
        try:
            symbolic = _with_values(config, stage.config)
            full = resolve(stage.config, lambda r: _lookup(config, results, r))
        except ConfigurationError as e:
            raise ConfigurationError(f"stage {stage.name}: {e.message}", hint=e.hint, context=e.context) from e
        kind = KINDS[stage.kind](full, folder)
        results[stage.name] = kind.results()
        order = tuple(s.name for s in config.stages if s.name in needs[stage.name])
        if stage.kind == "report":  # it tells of all stages before it
            order = tuple(planned.name for planned in stages)
        stages.append(Planned(stage.name, stage.kind, kind, folder, symbolic, order))
    future = {str(stage.folder) for stage in stages}
    for planned in stages:
        try:
            planned.kind.check(future)
            _check_places(planned.kind.config, future)
        except AlignTuneError as e:
            faults.append((planned.name, e))
    _raise(faults, str(source) if isinstance(source, (str, Path)) else "")
    where = str(source) if isinstance(source, (str, Path)) else ""
    return Plan(config, out, tuple(stages), where, overrides)


def _folder(out: Path, number: int, name: str) -> Path:
    """The stage's folder; one that is there keeps its number when stages are put before it."""
    for path in sorted(out.glob(f"[0-9][0-9]-{name}")):
        if (path / RECORD).is_file():
            return path
    return out / f"{number:02d}-{name}"


def _check_references(config: StagesConfig) -> dict[str, set[str]]:
    """Each stage's needs; refuses circles, later stages, unknown stages and results."""
    names = [stage.name for stage in config.stages]
    needs: dict[str, set[str]] = {}
    for reference in find(config.values):
        raise ConfigurationError(
            f"values: {reference.text} stands in a value", hint="values are plain; name results inside stages"
        )
    for stage in config.stages:
        try:
            references = [r for r in find(stage.config) if r.of == "stages"]
        except ConfigurationError as e:
            raise ConfigurationError(f"stage {stage.name}: {e.message}", hint=e.hint) from e
        for reference in references:
            if reference.name not in names:
                raise ConfigurationError(
                    f"stage {stage.name}: {reference.text} names a stage that is not there",
                    hint=nearest(reference.name, names),
                )
        needs[stage.name] = {r.name for r in references}
    if circle := _circle(names, needs):
        raise ConfigurationError(
            f"the stages need each other in a circle: {' -> '.join(circle)}",
            hint="remove one of the references between them",
        )
    for i, name in enumerate(names):
        later = [n for n in names[i:] if n in needs[name]]
        if later:
            raise ConfigurationError(
                f"stage {name} needs a result of {later[0]}, which comes after it",
                hint=f"write {later[0]} before {name}",
            )
    return needs


def _circle(names: list[str], needs: Mapping[str, set[str]]) -> list[str]:
    """Stages that need each other, first and last the same; empty where there is no circle."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in [n for n in names if n in needs[name]]:
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in names if (found := visit(name, []))), [])


def _value(config: StagesConfig, reference: Reference) -> Any:
    found: Any = config.values
    for part in reference.path:
        if not isinstance(found, Mapping) or part not in found:
            known = list(found) if isinstance(found, Mapping) else []
            raise ConfigurationError(f"{reference.text} names a value that is not there", hint=nearest(part, known))
        found = found[part]
    if found is None:
        dotted = ".".join(reference.path)
        raise ConfigurationError(f"values.{dotted} has no value", hint=f"give one: values.{dotted}=...")
    return found


def _lookup(config: StagesConfig, results: Mapping[str, Mapping[str, Any]], reference: Reference) -> Any:
    if reference.of == "values":
        return _value(config, reference)
    made = results[reference.name]
    if reference.last not in made:
        kind = next(stage.kind for stage in config.stages if stage.name == reference.name)
        raise ConfigurationError(
            f"{reference.text}: a {kind} stage makes no '{reference.last}'", hint=nearest(reference.last, made)
        )
    return made[reference.last]


def _with_values(config: StagesConfig, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with values written in, and references to stages left as they are."""
    return dict(resolve(raw, lambda r: _value(config, r) if r.of == "values" else r.text))


def places(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every string in a configuration that may name a file or folder that it reads."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            inherit = key if key in ("models", "read") else str(name)
            yield from places(value, "name_or_path" if inherit == "models" else inherit)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from places(value, key)
    elif isinstance(config, str) and key in (*PLACES, *FUNCTIONS, "models"):
        yield key, config


def code_file(key: str, text: str) -> str | None:
    """The file of a value that names a function or class in one, or may; None for other values."""
    return text.rpartition(":")[0] if key in FUNCTIONS or CODE.fullmatch(text) else None


def _check_places(config: Mapping[str, Any], future: set[str]) -> None:
    """Refuse files that are named and are not there, and that no stage will make.

    Raises:
        EnvironmentError: the first of them.
    """
    for key, text in places(config):
        if (file := code_file(key, text)) is not None:
            missing = file.endswith(".py") and not Path(file).expanduser().is_file()
            text = file
        elif any(text == path or text.startswith(f"{path}/") for path in future):
            continue
        else:
            local = text.startswith(("/", "./", "../", "~/")) or (text.endswith(SUFFIXES) and "://" not in text)
            missing = local and not any(c in text for c in "*?[{") and not Path(text).expanduser().exists()
        if missing:
            raise EnvironmentError(
                f"{key}: {text} is not there",
                hint="mend the path; relative paths are relative to the folder in which the command runs",
            )


def _raise(faults: list[tuple[str, AlignTuneError]], where: str) -> None:
    if not faults:
        return
    prefix = f"{where}: " if where else ""
    if len(faults) == 1:
        name, e = faults[0]
        raise type(e)(f"{prefix}stage {name}: {e.message}", hint=e.hint, context={"stage": name, **e.context})
    lines = "\n".join(f"  {name}: {e.message}" + (f"; {e.hint}" if e.hint else "") for name, e in faults)
    raise ConfigurationError(
        f"{prefix}{len(faults)} stages are wrong\n{lines}",
        hint="mend the keys named; nothing was started",
        context={"stages": [name for name, _ in faults]},
    )
