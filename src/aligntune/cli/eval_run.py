"""`aligntune eval run`: measure models on tasks, from an evaluation file, from the library, or on one data set.

    aligntune eval eval.yaml model.name_or_path=runs/sft
    aligntune eval runs/base runs/sft --tasks arc,hellaswag --output-dir runs/compared
    aligntune eval --model runs/sft --dataset test.jsonl --kind exact_match --max-new-tokens 64

Precedence and paths are those of `aligntune train`. Several models are measured on the same tasks, each in a folder of
its own, and each is compared with the first.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aligntune.cli.console import Output, Settings, shared
from aligntune.errors import ConfigurationError
from aligntune.registry import nearest

if TYPE_CHECKING:
    from aligntune.eval import EvalConfig, EvalResult

FLAGS = {"model": "model.name_or_path", "output_dir": "output_dir", "seed": "seed"}
LM_EVAL = "lm_eval:"
"""Before the name of a task of lm-evaluation-harness in --tasks."""
TASK_FLAGS = {
    "kind": "tasks.0.kind",
    "dataset": "tasks.0.dataset.name",
    "preset": "tasks.0.dataset.preset",
    "split": "tasks.0.dataset.split",
    "reward": "tasks.0.rewards",
    "max_samples": "tasks.0.max_samples",
    "max_new_tokens": "tasks.0.max_new_tokens",
}
"""Flags that describe the one task of an evaluation without a file."""


@click.command(short_help="Measure models on tasks (the default).")
@click.argument("arguments", nargs=-1, metavar="[FILE | MODEL...] [KEY=VALUE]...")
@click.option("--model", metavar="NAME", help="Folder or hub id of the model to measure.")
@click.option(
    "--tasks", metavar="NAME,NAME", help="Only these tasks of FILE; without FILE, of the library or lm_eval:NAME."
)
@click.option("--kind", metavar="KIND", help="Without FILE: the kind of evaluation (`aligntune eval list`).")
@click.option("--dataset", metavar="NAME", help="Without FILE: hub id, file or folder of the items.")
@click.option("--preset", metavar="NAME", help="Without FILE: known data set's columns and template.")
@click.option("--split", metavar="NAME", help="Without FILE: split of the data set.")
@click.option("--reward", metavar="NAME", multiple=True, help="Without FILE: reward, for the kind reward.")
@click.option("--max-samples", type=int, help="Without FILE: draw this many items.")
@click.option("--max-new-tokens", type=int, help="Without FILE: longest answer in tokens.")
@click.option("--output-dir", metavar="DIR", help="Folder for the results and every item.")
@click.option("--seed", type=int, help="Seed of the draw of items and of sampling.")
@click.option("--resume", is_flag=True, help="Go on in an output folder whose evaluation did not finish.")
@click.option("--margin", type=float, metavar="X", help="Several models: differences up to X do not matter.")
@click.option("--changed", type=int, default=5, show_default=True, help="Several models: show N items that changed.")
@shared
def command(
    settings: Settings,
    arguments: tuple[str, ...],
    tasks: str | None,
    resume: bool,
    margin: float | None,
    changed: int,
    **flags: Any,
) -> Output:
    """Measure a model on the tasks of FILE, changed by flags and KEY=VALUE, or MODELs on tasks of the library or on
    one data set.

    Every value comes with its interval; several models are compared item by item. KEY is a dotted path:
    tasks.0.max_samples=100.
    """
    file, models, overrides = read_arguments(arguments)
    given = {k: list(v) if k == "reward" else v for k, v in flags.items() if v not in (None, ())}
    names = tasks.split(",") if tasks else None
    if len(models) < 2:
        if margin is not None:
            raise ConfigurationError("--margin belongs to a comparison", hint="name two models")
        if models:
            given.setdefault("model", models[0])
        return _told(build(file, overrides, given, names), resume)
    if "model" in given:
        raise ConfigurationError("--model and several models contradict each other", hint="remove --model")
    return _several(models, file, overrides, given, names, resume, margin, changed)


def _told(config: EvalConfig, resume: bool) -> Output:
    from aligntune.eval import EvalRunner

    result = EvalRunner(config).run(resume=resume)
    told = logging.getLogger("aligntune").isEnabledFor(logging.INFO)  # notes and values were shown as they came
    notes = [*result.notes, *(f"{t.name}: {note}" for t in result.tasks.values() for note in t.notes)]
    lines = [f"model  {result.model}", *(f"- {note}" for note in notes if not told)]
    lines += [f"{t.name}  {metric}" for t in result.tasks.values() for metric in t.metrics.values()]
    if config.output_dir:
        lines.append(f"items  {config.output_dir}")
    return Output(result.to_dict(), "\n".join(lines))


def _several(
    models: list[str],
    file: str | None,
    overrides: list[str],
    given: dict[str, Any],
    names: list[str] | None,
    resume: bool,
    margin: float | None,
    changed: int,
) -> Output:
    """Each model in a folder `<number>-<name>` of the output folder; a finished one is read, not measured again."""
    from aligntune.cli.eval_compare import compared
    from aligntune.eval import EvalRunner
    from aligntune.eval.result import RESULTS

    results = []
    for i, model in enumerate(models):
        config = build(file, overrides, {**given, "model": model}, names)
        if config.output_dir is not None:
            folder = Path(config.output_dir) / f"{i}-{Path(model).name}"
            config = dataclasses.replace(config, output_dir=str(folder))
            if resume and (folder / RESULTS).is_file():
                results.append(_finished(folder, config))
                continue
        results.append(EvalRunner(config).run(resume=resume))
    output = compared(results, [], margin, changed)
    values = [f"{r.model}  {t.name}  {m}" for r in results for t in r.tasks.values() for m in t.metrics.values()]
    data = {"models": [r.to_dict() for r in results], **output.data}
    return Output(data, "\n".join([*values, "", output.text]))


def _finished(folder: Path, config: EvalConfig) -> EvalResult:
    """The results of a folder, which must be those of this model on these tasks."""
    from aligntune.eval import EvalResult

    result = EvalResult.load(folder)
    if result.model not in (config.model.name_or_path, os.path.abspath(config.model.name_or_path)):
        raise ConfigurationError(
            f"{folder} holds results of {result.model}, not of {config.model.name_or_path}",
            hint="set --output-dir to a new folder",
        )
    lacking = [task.name for task in config.tasks if task.name not in result.tasks]
    if lacking:
        raise ConfigurationError(
            f"{folder} is finished and has no task '{lacking[0]}'", hint="set --output-dir to a new folder"
        )
    return result


def read_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str], list[str]]:
    """(file or None, models, overrides): a YAML file first, or models; then key=value.

    Raises:
        ConfigurationError: a file that is not the first argument, or a model behind an override.
    """
    plain = [a for a in arguments if "=" not in a or os.path.exists(a)]
    overrides = [a for a in arguments if a not in plain]
    if list(arguments) != [*plain, *overrides]:
        late = next(a for a in plain if list(arguments).index(a) > list(arguments).index(overrides[0]))
        raise ConfigurationError(f"'{late}' is not an override", hint="write FILE or models first, then key=value")
    files = [a for a in plain if a.endswith((".yaml", ".yml"))]
    if (files and plain[0] != files[0]) or len(files) > 1:
        raise ConfigurationError(f"'{files[-1]}' must be the first argument", hint="one evaluation file, then models")
    return (files[0] if files else None), plain[len(files) :], overrides


def build(file: str | None, overrides: list[str], flags: dict[str, Any], names: list[str] | None) -> EvalConfig:
    """The checked configuration of a command line.

    Raises:
        ConfigurationError: with every fault in one message.
    """
    from aligntune.core.config.reading import read_yaml, set_key
    from aligntune.eval.config import build_eval_config
    from aligntune.eval.library import expand

    library = names if not file else None
    raw = read_yaml(file) if file else _from_library(flags, names) if library else _one_task(flags)
    raw = {**raw, "tasks": expand(raw["tasks"])} if "tasks" in raw else raw
    table = FLAGS if file or library else {**FLAGS, **TASK_FLAGS}
    for flag, value in flags.items():
        targets = [table[flag]] if flag in table else _of_every_task(flag, raw, file)
        for target in targets:
            set_key(raw, target, value)
    if names is not None and file:
        raw["tasks"] = _chosen(raw, names)
    return build_eval_config(raw, overrides, file or "")


def _of_every_task(flag: str, raw: dict[str, Any], file: str | None) -> list[str]:
    """Where a flag that describes one task goes when the tasks come from the library: to each of them, or to one."""
    key = TASK_FLAGS[flag].removeprefix("tasks.0.")
    if file or key.startswith(("kind", "rewards")):
        raise ConfigurationError(
            f"--{flag.replace('_', '-')} describes an evaluation without a file",
            hint=f"change the file's task: {TASK_FLAGS[flag]}=...",
        )
    if key.startswith("dataset") and len(raw["tasks"]) > 1:
        raise ConfigurationError(
            f"--{flag.replace('_', '-')} names one data set for {len(raw['tasks'])} tasks",
            hint="give each its own: tasks.0.dataset.name=..., tasks.1.dataset.name=...",
        )
    return [f"tasks.{i}.{key}" for i in range(len(raw["tasks"]))]


def _from_library(flags: dict[str, Any], names: list[str] | None) -> dict[str, Any]:
    if "model" not in flags:
        raise ConfigurationError("nothing says what to evaluate: --model missing", hint="give --model, or a file")
    listed = names or []
    harness = [name.removeprefix(LM_EVAL) for name in listed if name.startswith(LM_EVAL)]
    tasks: list[Any] = [name for name in listed if not name.startswith(LM_EVAL)]
    if "dataset" in flags and len(tasks) == 1:  # another file is another source than the hub's
        tasks = [{"use": tasks[0], "dataset": flags.pop("dataset")}]
    return {"model": {}, "tasks": tasks, **({"lm_eval": {"tasks": harness}} if harness else {})}


def _one_task(flags: dict[str, Any]) -> dict[str, Any]:
    missing = [f"--{key}" for key in ("model", "kind", "dataset") if key not in flags]
    if missing:
        raise ConfigurationError(
            f"nothing says what to evaluate: {', '.join(missing)} missing",
            hint="give an evaluation file, --model and --tasks, or --model, --kind and --dataset",
        )
    return {"model": {}, "tasks": [{"name": flags["kind"], "dataset": {}}]}


def _chosen(raw: dict[str, Any], names: list[str]) -> list[Any]:
    """The tasks of the file that are called `names`, in the file's order."""
    listed = raw.get("tasks")
    tasks = [t for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
    known = [str(t.get("name")) for t in tasks]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"no task '{name}' in the file", hint=nearest(name, known))
    return [t for t in tasks if t.get("name") in names]
